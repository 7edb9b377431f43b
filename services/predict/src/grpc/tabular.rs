//! Calls about rows.

use tonic::{Request, Response, Status};
use verdict_api::predict::{PredictRequest, PredictResponse};
use verdict_chassis::context;
use verdict_inference::trees::TreeEnsemble;

use crate::{catalog::Catalog, convert, text};

pub(super) async fn predict(
    catalog: &Catalog,
    request: Request<PredictRequest>,
) -> Result<Response<PredictResponse>, Status> {
    let deadline = context::of(&request).deadline;
    let PredictRequest { model, input } = request.into_inner();
    let found = catalog.find(&model)?;
    let tabular = found.model.tabular()?;
    let (bytes, loaded) = (convert::tabular::cell_bytes(input.as_ref()), found.model.clone());
    let cells = text::off_thread(bytes, move || convert::tabular::cells(input, &loaded.tabular()?.schema)).await??;
    let (margins, timing) = tabular.margins(cells, deadline).await?;
    let probabilities = margins.iter().map(|margin| TreeEnsemble::probability(*margin)).collect();
    let served_by = Some(convert::served_by(&found, timing));
    Ok(Response::new(PredictResponse { probabilities, margins, served_by, outputs: 1, ..PredictResponse::default() }))
}
