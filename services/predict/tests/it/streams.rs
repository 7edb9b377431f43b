//! Many requests on one stream.

use std::collections::BTreeSet;

use futures::stream::{self, StreamExt};
use tonic::Code;
use verdict_api::{
    predict::{
        EmbedRequest, EmbedResponse, Matrix, PredictRequest, RerankRequest, StreamEmbedRequest, StreamPredictRequest,
        StreamRerankRequest, predict_request::Input, predict_service_client::PredictServiceClient,
        stream_embed_response, stream_predict_response, stream_rerank_response,
    },
    registry::Task,
};

use crate::world::{Predict, Registry, config, told};

const CREDIT: &str = "credit-risk@champion";
const EMBEDDER: &str = "all-MiniLM-L6-v2@champion";
const RERANKER: &str = "ms-marco-MiniLM-L-12-v2@champion";

fn rows(id: &str, model: &str, rows: usize) -> StreamPredictRequest {
    let values = (0..rows * 20).map(|at| (at * 7919 % 5) as f32).collect();
    let input = Some(Input::Matrix(Matrix { columns: 20, values }));
    StreamPredictRequest { id: id.to_owned(), request: Some(PredictRequest { model: model.to_owned(), input }) }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_of_a_stream_is_answered_and_errors_do_not_end_it() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let (predict, _dir) = Predict::warm(&registry, &[CREDIT]).await;
    let mut client = predict.client();

    let asked: Vec<_> = (0..500_usize)
        .map(|number| match number % 50 {
            13 => rows(&number.to_string(), "fraud@champion", 1),
            17 => StreamPredictRequest { id: number.to_string(), request: None },
            _ => rows(&number.to_string(), CREDIT, 1 + number % 40),
        })
        .collect();
    let mut answers = client.stream_predict(stream::iter(asked)).await.unwrap().into_inner();
    let mut ids = BTreeSet::new();
    while let Some(answer) = answers.message().await.unwrap() {
        let number: usize = answer.id.parse().unwrap();
        assert!(ids.insert(number), "{number} is answered twice");
        match (number % 50, answer.result.unwrap()) {
            (13, stream_predict_response::Result::Error(error)) => {
                assert_eq!((error.code, error.reason.as_str()), (Code::NotFound as i32, "MODEL_NOT_SERVED"));
            }
            (17, stream_predict_response::Result::Error(error)) => {
                assert_eq!((error.code, error.reason.as_str()), (Code::InvalidArgument as i32, "INVALID_REQUEST"));
                assert!(error.message.contains("`request` is missing"), "{}", error.message);
            }
            (_, stream_predict_response::Result::Response(response)) => {
                let Some(Input::Matrix(matrix)) = rows("", CREDIT, 1 + number % 40).request.unwrap().input else {
                    panic!("a matrix")
                };
                let alone = PredictRequest { model: CREDIT.to_owned(), input: Some(Input::Matrix(matrix)) };
                if number.is_multiple_of(25) {
                    let alone = predict.client().predict(alone).await.unwrap().into_inner();
                    assert_eq!(response.margins, alone.margins);
                }
                assert_eq!(response.margins.len(), 1 + number % 40);
            }
            (_, other) => panic!("{number}: {other:?}"),
        }
    }
    assert_eq!(ids.len(), 500);

    let long = "é".repeat(100);
    let mut answers = client.stream_predict(stream::iter([rows(&long, CREDIT, 1)])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    assert_eq!(answer.id, "é".repeat(64));
    assert!(
        matches!(answer.result, Some(stream_predict_response::Result::Error(error)) if error.message.contains("`id`"))
    );
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_stream_too_and_a_caller_that_leaves_leaves_nothing_behind() {
    let registry = Registry::start().await;
    registry.publish_text("all-MiniLM-L6-v2", Task::TextEmbedding).await;
    registry.publish_text("ms-marco-MiniLM-L-12-v2", Task::TextReranking).await;
    let (predict, _dir) = Predict::warm(&registry, &[EMBEDDER, RERANKER]).await;
    let mut client = predict.client();

    let embed = |id: usize| StreamEmbedRequest {
        id: id.to_string(),
        request: Some(EmbedRequest {
            model: EMBEDDER.to_owned(),
            inputs: vec![format!("sentence {id}"), String::new()],
            ..EmbedRequest::default()
        }),
    };
    let mut answers = client.stream_embed(stream::iter((0..40).map(embed))).await.unwrap().into_inner();
    let mut count = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        let Some(stream_embed_response::Result::Response(EmbedResponse { embeddings, served_by })) = answer.result
        else {
            panic!("an answer")
        };
        assert_eq!((embeddings[0].values.len(), served_by.unwrap().version), (384, 1));
        assert_eq!(embeddings[1].error.as_ref().unwrap().reason, "EMPTY_INPUT");
        count += 1;
    }
    assert_eq!(count, 40);

    let rerank = StreamRerankRequest {
        id: "r".to_owned(),
        request: Some(RerankRequest {
            model: RERANKER.to_owned(),
            query: "who lends money".to_owned(),
            documents: vec!["Cats sleep.".to_owned(), "A bank lends money.".to_owned()],
            top_n: 1,
        }),
    };
    let mut answers = client.stream_rerank(stream::iter([rerank])).await.unwrap().into_inner();
    let Some(stream_rerank_response::Result::Response(ranked)) = answers.message().await.unwrap().unwrap().result
    else {
        panic!("an answer")
    };
    assert_eq!(ranked.results[0].index, 1);

    // Never ends by itself: the caller takes three answers, and then its process is gone.
    let address = predict.address();
    let caller = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let channel = verdict_chassis::client::connect(&format!("http://{address}")).unwrap();
            let mut client = PredictServiceClient::new(channel);
            let mut answers = client.stream_embed(stream::iter(0..).map(embed)).await.unwrap().into_inner();
            for _ in 0..3 {
                answers.message().await.unwrap().unwrap();
            }
        });
        runtime.shutdown_background();
    });
    tokio::task::spawn_blocking(|| caller.join().unwrap()).await.unwrap();
    drop(client);
    // What is left would keep the server from stopping at once.
    let begun = std::time::Instant::now();
    predict.stop().await;
    assert!(begun.elapsed() < std::time::Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_stream_ends_it_after_the_answers_before_it() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let dir = tempfile::tempdir().unwrap();
    let mut small = config(dir.path(), &registry.url(), &[CREDIT]);
    small.server.max_message_bytes = 64 << 10;
    let predict = Predict::start(small).await;
    predict.wait_ready().await;

    let asked = [rows("a", CREDIT, 100), rows("b", CREDIT, 10_000), rows("c", CREDIT, 1)];
    let mut answers = predict.client().stream_predict(stream::iter(asked)).await.unwrap().into_inner();
    let first = answers.message().await.unwrap().unwrap();
    assert_eq!(first.id, "a");
    assert!(matches!(first.result, Some(stream_predict_response::Result::Response(_))));
    let broken = answers.message().await.unwrap_err();
    assert_eq!((broken.code(), told(&broken).0.as_str()), (Code::OutOfRange, "MESSAGE_TOO_LARGE"));
    predict.stop().await;
}
