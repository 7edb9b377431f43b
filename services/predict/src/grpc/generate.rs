//! Generation, token by token.

use futures::stream::{self, StreamExt};
use tonic::{Request, Response, Status};
use verdict_api::predict::{GenerateRequest, GenerateResponse};

use super::Answers;
use crate::{admission::Admission, catalog::Catalog, convert, generate::Event};

pub(super) async fn generate(
    catalog: &Catalog,
    request: Request<GenerateRequest>,
) -> Result<Response<Answers<GenerateResponse>>, Status> {
    let admission = Admission::of(&request)?;
    let call = convert::generate::generate(request.into_inner(), rand::random())?;
    let found = catalog.find(&call.model)?;
    let running = found.model.generation()?.generate(call.start, call.sampling, call.schema, admission).await?;
    let events = stream::unfold((running, found), |(mut running, found)| async move {
        let event = running.next().await?.map_err(Status::from);
        let message = event.and_then(|event| match event {
            Event::Step(step) => {
                let engine = found.model.generation()?;
                Ok(convert::generate::generated(step, |id| engine.token_text(id)))
            }
            Event::Finish(finish) => Ok(convert::generate::finished(finish, &found)),
        });
        Some((message, (running, found)))
    });
    Ok(Response::new(events.boxed()))
}
