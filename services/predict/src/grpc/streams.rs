//! Many requests on one stream, worked on at the same time, by the same functions as single calls.
//!
//! The next request is read when there is room for it, and there is room when answers are taken: a caller that does not
//! read is not served ahead. A request that fails is answered by its error. What breaks the stream itself, as a message
//! over the limit, ends it once the requests before it are answered. When the caller leaves, its work is withdrawn.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{
    future::{BoxFuture, FutureExt, ready},
    stream::{self, StreamExt},
};
use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Extensions, Request, Response, Status, Streaming, metadata::MetadataMap};
use verdict_api::predict as api;
use verdict_chassis::{
    context::{self, RequestContext},
    status::{self, Field},
};

use super::Answers;

/// Requests of one stream that are worked on at the same time.
const CONCURRENT: usize = 32;
/// Longest id of a request, in bytes.
const MAX_ID: usize = 128;

/// A request with its id, and what its answer is put into.
pub(super) trait Envelope: Send + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;
    type Answer: Send + 'static;

    fn open(self) -> (String, Option<Self::Request>);
    fn answer(id: String, outcome: Result<Self::Response, api::ItemError>) -> Self::Answer;
}

/// In which order the answers of a stream come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// As they are ready.
    Ready,
    /// As they were asked for.
    Asked,
}

/// Answers each request of a stream as `call` answers it alone.
pub(super) fn answers<E: Envelope, F>(
    requests: Request<Streaming<E>>,
    patience: Duration,
    call: impl Fn(Request<E::Request>) -> F + Clone + Send + 'static,
) -> Response<Answers<E::Answer>>
where
    F: Future<Output = Result<Response<E::Response>, Status>> + Send + 'static,
{
    each(requests, Order::Ready, patience, move |request| {
        let (metadata, extensions, message) = request.into_parts();
        let (mut id, message) = message.open();
        let call = call.clone();
        async move {
            let outcome = match message {
                _ if id.len() > MAX_ID => {
                    let problem = format!("has {} bytes: at most {MAX_ID} are taken", id.len());
                    id.truncate(id.floor_char_boundary(MAX_ID));
                    Err(status::invalid("INVALID_REQUEST", vec![Field::new("id", problem)]))
                }
                None => Err(status::invalid("INVALID_REQUEST", vec![Field::new("request", "is missing")])),
                Some(message) => guarded(call(Request::from_parts(metadata, extensions, message))).await,
            };
            E::answer(id, outcome.map(Response::into_inner).map_err(|status| item_error(&status)))
        }
        .boxed()
    })
}

/// Calls `answer` for each message of a stream, as a call of its own with the stream's metadata and a deadline that is
/// at most `patience` away.
pub(super) fn each<M: Send + 'static, A: Send + 'static>(
    requests: Request<Streaming<M>>,
    order: Order,
    patience: Duration,
    answer: impl Fn(Request<M>) -> BoxFuture<'static, A> + Send + 'static,
) -> Response<Answers<A>> {
    let stream_context = context::of(&requests);
    let (metadata, extensions, messages) = requests.into_parts();
    let broken: Arc<Mutex<Option<Status>>> = Arc::default();
    let noted = broken.clone();
    let messages =
        messages.scan((), move |(), message| ready(message.map_err(|status| *noted.lock() = Some(status)).ok()));
    let started = messages.map(move |message| {
        let request = single(&metadata, &extensions, &stream_context, patience, message);
        // On its own task, so that the requests of a stream are not worked on by one thread in turn.
        AbortOnDropHandle::new(context::spawn(answer(request)))
    });
    let answers = match order {
        Order::Ready => started.buffer_unordered(CONCURRENT).boxed(),
        Order::Asked => started.buffered(CONCURRENT).boxed(),
    };
    let answers =
        answers.map(|answer| answer.map_err(|_ended| status::internal(&anyhow::anyhow!("a request panicked"))));
    let last = stream::once(async move { broken.lock().take() }).filter_map(|status| ready(status.map(Err)));
    Response::new(answers.chain(last).boxed())
}

/// Makes a call of one message of a stream.
fn single<M>(
    metadata: &MetadataMap,
    extensions: &Extensions,
    stream: &RequestContext,
    patience: Duration,
    message: M,
) -> Request<M> {
    let latest = Instant::now().checked_add(patience);
    let deadline = match (stream.deadline, latest) {
        (Some(deadline), Some(latest)) => Some(deadline.min(latest)),
        (one, other) => one.or(other),
    };
    let mut extensions = extensions.clone();
    extensions.insert(RequestContext { deadline, ..stream.clone() });
    Request::from_parts(metadata.clone(), extensions, message)
}

/// Makes a panic the failure of its request.
pub(super) async fn guarded<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    match std::panic::AssertUnwindSafe(call).catch_unwind().await {
        Ok(outcome) => outcome,
        Err(_) => Err(status::internal(&anyhow::anyhow!("a request of a stream panicked"))),
    }
}

fn item_error(status: &Status) -> api::ItemError {
    let reason = status::reason(status).unwrap_or_else(|| format!("{:?}", status.code()).to_uppercase());
    api::ItemError { code: status.code().into(), reason, message: status.message().to_owned() }
}

macro_rules! envelope {
    ($envelope:ident, $request:ident, $answer:ident, $module:ident, $response:ident) => {
        impl Envelope for api::$envelope {
            type Request = api::$request;
            type Response = api::$response;
            type Answer = api::$answer;

            fn open(self) -> (String, Option<Self::Request>) {
                let Self { id, request } = self;
                (id, request)
            }

            fn answer(id: String, outcome: Result<Self::Response, api::ItemError>) -> Self::Answer {
                use api::$module::Result as Outcome;
                let result = match outcome {
                    Ok(response) => Outcome::Response(response),
                    Err(error) => Outcome::Error(error),
                };
                api::$answer { id, result: Some(result) }
            }
        }
    };
}

envelope!(StreamEmbedRequest, EmbedRequest, StreamEmbedResponse, stream_embed_response, EmbedResponse);
envelope!(
    StreamEmbedSparseRequest,
    EmbedSparseRequest,
    StreamEmbedSparseResponse,
    stream_embed_sparse_response,
    EmbedSparseResponse
);
envelope!(StreamRerankRequest, RerankRequest, StreamRerankResponse, stream_rerank_response, RerankResponse);
envelope!(StreamClassifyRequest, ClassifyRequest, StreamClassifyResponse, stream_classify_response, ClassifyResponse);
envelope!(StreamPredictRequest, PredictRequest, StreamPredictResponse, stream_predict_response, PredictResponse);
