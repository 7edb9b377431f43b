//! The service: convert in, one call, convert out.

use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use futures::stream::{self, BoxStream, Stream, StreamExt};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use verdict_api::rag::rag_service_server::{self, RagServiceServer};
use verdict_api::rag::{
    AnswerRequest, AnswerResponse, DeleteDocumentRequest, DeleteDocumentResponse, GetCollectionRequest,
    GetCollectionResponse, IngestDocumentsRequest, IngestDocumentsResponse, SearchRequest, SearchResponse,
};

use crate::answer::Answers;
use crate::convert;
use crate::error::{Error, Result};
use crate::ingest::Ingest;
use crate::search::search;

/// Parts of an answer that wait for a slow reader.
const PARTS: usize = 16;

/// Makes the routes; messages in are at most `limit` bytes.
pub(crate) fn routes(ingest: Ingest, answers: Answers, limit: usize) -> Routes {
    let service = RagServiceServer::new(Rag { ingest, answers: Arc::new(answers) });
    Routes::new(service.max_decoding_message_size(limit))
}

struct Rag {
    ingest: Ingest,
    answers: Arc<Answers>,
}

#[tonic::async_trait]
impl rag_service_server::RagService for Rag {
    type IngestDocumentsStream = BoxStream<'static, Result<IngestDocumentsResponse, Status>>;
    type AnswerStream = BoxStream<'static, Result<AnswerResponse, Status>>;

    async fn ingest_documents(
        &self,
        request: Request<Streaming<IngestDocumentsRequest>>,
    ) -> Result<Response<Self::IngestDocumentsStream>, Status> {
        let documents = request.into_inner().map(|message| message.map(convert::submission));
        let reports = self.ingest.clone().run(documents).await?;
        Ok(Response::new(reports.map(|report| report.map(convert::report)).boxed()))
    }

    async fn search(&self, request: Request<SearchRequest>) -> Result<Response<SearchResponse>, Status> {
        let request = convert::search(request.into_inner())?;
        let Answers { index, models, words, .. } = &*self.answers;
        let outcome = search(&**index, models, words, request).await?;
        Ok(Response::new(convert::outcome(outcome)))
    }

    async fn answer(&self, request: Request<AnswerRequest>) -> Result<Response<Self::AnswerStream>, Status> {
        let question = convert::question(request.into_inner())?;
        let answers = self.answers.clone();
        // The work runs inside the stream it fills: a caller that leaves ends it, and with it the generation.
        let (parts, taken) = tokio::sync::mpsc::channel(PARTS);
        let work = async move { answers.answer(question, &parts).await };
        Ok(Response::new(beside(ReceiverStream::new(taken), work).map(|part| part.map(convert::part)).boxed()))
    }

    async fn delete_document(
        &self,
        request: Request<DeleteDocumentRequest>,
    ) -> Result<Response<DeleteDocumentResponse>, Status> {
        let (collection, document_id) = convert::deletion(request.into_inner())?;
        match self.ingest.index.delete(&collection, &document_id).await? {
            0 => Err(Error::DocumentNotFound { collection, document_id }.into()),
            chunks => Ok(Response::new(convert::deleted(chunks, SystemTime::now()))),
        }
    }

    async fn get_collection(
        &self,
        request: Request<GetCollectionRequest>,
    ) -> Result<Response<GetCollectionResponse>, Status> {
        let collection = convert::collection(&request.into_inner().collection)?;
        let index = &self.ingest.index;
        let schema = index.schema(&collection).await?.ok_or_else(|| Error::CollectionNotFound(collection.clone()))?;
        let counts = index.counts(&collection).await?;
        Ok(Response::new(convert::contents(&collection, schema, counts)))
    }
}

/// Yields what `parts` yields while `work` runs beside it, and at last the error that `work` ended with.
fn beside<T: Send + 'static>(
    parts: impl Stream<Item = T> + Send + 'static,
    work: impl Future<Output = Result<()>> + Send + 'static,
) -> impl Stream<Item = Result<T, Status>> + Send {
    let parts: Pin<Box<dyn Stream<Item = T> + Send>> = Box::pin(parts);
    let state = (parts, Some(Box::pin(work)), None);
    stream::unfold(state, |(mut parts, mut work, mut error): (_, _, Option<Error>)| async move {
        loop {
            tokio::select! {
                biased;
                part = parts.next() => match part {
                    Some(part) => return Some((Ok(part), (parts, work, error))),
                    None => {
                        if let Some(work) = work.take() {
                            error = work.await.err();
                        }
                        return error.take().map(|error| (Err(error.into()), (parts, None, None)));
                    }
                },
                outcome = async { match work.as_mut() { Some(work) => work.await, None => std::future::pending().await } } => {
                    work = None;
                    error = outcome.err();
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_error_comes_after_the_parts_before_it_and_ends_the_stream() {
        let (parts, taken) = tokio::sync::mpsc::channel(1);
        let work = async move {
            for part in 0..3 {
                let _ = parts.send(part).await;
            }
            Err(Error::DeadlineExceeded)
        };
        let all: Vec<_> = beside(ReceiverStream::new(taken), work).collect().await;
        let parts: Vec<_> = all.iter().filter_map(|part| part.as_ref().ok()).collect();
        assert_eq!(parts, [&0, &1, &2]);
        assert_eq!(all.last().unwrap().as_ref().unwrap_err().code(), tonic::Code::DeadlineExceeded);
    }
}
