//! Calls about rows.

use tonic::{Request, Response, Status};
use verdict_api::predict::{ExplainRequest, ExplainResponse, PredictRequest, PredictResponse};

use crate::{admission::Admission, catalog::Catalog, convert, text};

pub(super) async fn predict(
    catalog: &Catalog,
    request: Request<PredictRequest>,
) -> Result<Response<PredictResponse>, Status> {
    let admission = Admission::of(&request)?;
    let PredictRequest { model, input } = request.into_inner();
    let found = catalog.find(&model)?;
    let tabular = found.model.tabular()?;
    let (bytes, loaded) = (convert::tabular::cell_bytes(input.as_ref()), found.model.clone());
    let cells = text::off_thread(bytes, move || convert::tabular::cells(input, &loaded.tabular()?.schema)).await??;
    let (margins, timing) = tabular.margins(cells, admission).await?;
    let answer = convert::tabular::scored(tabular.model(), margins);
    Ok(Response::new(PredictResponse { served_by: Some(convert::served_by(&found, timing)), ..answer }))
}

pub(super) async fn explain(
    catalog: &Catalog,
    request: Request<ExplainRequest>,
) -> Result<Response<ExplainResponse>, Status> {
    let admission = Admission::of(&request)?;
    let ExplainRequest { model, input, top_k } = request.into_inner();
    let input = input.map(convert::tabular::explained_input);
    let found = catalog.find(&model)?;
    let tabular = found.model.tabular()?;
    let (bytes, loaded) = (convert::tabular::cell_bytes(input.as_ref()), found.model.clone());
    let cells = text::off_thread(bytes, move || convert::tabular::cells(input, &loaded.tabular()?.schema)).await??;
    let columns = tabular.schema.inputs().len();
    let most = if top_k == 0 { columns } else { columns.min(top_k as usize) };
    convert::tabular::check_shares(cells.len() / columns, tabular.model().num_outputs(), columns, most)?;
    let (explained, timing) = tabular.explain(cells, admission).await?;
    let (bytes, loaded) = (explained.shap.len() * size_of::<f32>(), found.model.clone());
    let answer = move || {
        let tabular = loaded.tabular()?;
        Ok::<_, crate::error::Error>(convert::tabular::explained(tabular, &explained, most))
    };
    let answer = text::off_thread(bytes, answer).await??;
    Ok(Response::new(ExplainResponse { served_by: Some(convert::served_by(&found, timing)), ..answer }))
}
