//! The Open Inference Protocol over the wire.

use std::time::Duration;

use tonic::{Code, Request, Status, codec::CompressionEncoding};
use verdict_api::{
    inference::{
        InferTensorContents, ModelConfigRequest, ModelInferRequest, ModelInferResponse, ModelMetadataRequest,
        ModelReadyRequest, ModelStatisticsRequest, RepositoryIndexRequest, ServerLiveRequest, ServerMetadataRequest,
        ServerReadyRequest,
        model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
    },
    predict::{EmbedRequest, Matrix, PredictRequest, predict_request::Input},
    registry::Task,
};

use crate::world::{Predict, Registry, config, floats, golden, told};

const CREDIT: &str = "credit-risk@champion";
const EMBEDDER: &str = "all-MiniLM-L6-v2";

fn tensor(name: &str, datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.to_vec(),
        ..InferInputTensor::default()
    }
}

fn ask(model: &str, inputs: Vec<InferInputTensor>, raw_input_contents: Vec<Vec<u8>>) -> ModelInferRequest {
    ModelInferRequest { model_name: model.to_owned(), inputs, raw_input_contents, ..ModelInferRequest::default() }
}

fn rows(model: &str, cells: &[f32]) -> ModelInferRequest {
    let shape = [cells.len() as i64 / 20, 20];
    let raw = cells.iter().flat_map(|cell| cell.to_le_bytes()).collect();
    ask(model, vec![tensor("input", "FP32", &shape)], vec![raw])
}

fn texts(model: &str, texts: &[&str]) -> ModelInferRequest {
    let bytes_contents = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    let contents = Some(InferTensorContents { bytes_contents, ..InferTensorContents::default() });
    let input = InferInputTensor { contents, ..tensor("text", "BYTES", &[texts.len() as i64]) };
    ask(model, vec![input], Vec::new())
}

fn want(request: ModelInferRequest, names: &[&str]) -> ModelInferRequest {
    let output = |name: &&str| InferRequestedOutputTensor { name: (*name).to_owned(), ..Default::default() };
    ModelInferRequest { outputs: names.iter().map(output).collect(), ..request }
}

fn raw_floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

fn named(response: &ModelInferResponse) -> Vec<&str> {
    response.outputs.iter().map(|output| output.name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_scored_as_by_the_typed_call_raw_and_typed() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let (predict, _dir) = Predict::warm(&registry, &[CREDIT]).await;
    let mut client = predict.inference();

    assert!(client.server_live(ServerLiveRequest {}).await.unwrap().into_inner().live);
    assert!(client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
    let server = client.server_metadata(ServerMetadataRequest {}).await.unwrap().into_inner();
    assert!(server.extensions.contains(&"model_repository".to_owned()), "{server:?}");

    let metadata = ModelMetadataRequest { name: "credit-risk".to_owned(), version: String::new() };
    let metadata = client.model_metadata(metadata).await.unwrap().into_inner();
    assert_eq!((metadata.name.as_str(), metadata.versions), ("credit-risk", vec!["1".to_owned()]));
    let input = &metadata.inputs[0];
    assert_eq!((input.name.as_str(), input.datatype.as_str(), &input.shape[..]), ("input", "FP32", &[-1, 20][..]));
    let config = ModelConfigRequest { name: "credit-risk".to_owned(), version: "1".to_owned() };
    let config = client.model_config(config).await.unwrap().into_inner().config.unwrap();
    assert_eq!((config.max_batch_size, &config.input[0].dims[..]), (0, &[-1, 20][..]));

    let golden = golden("german_rows.json");
    let cells: Vec<_> = golden["rows"].as_array().unwrap().iter().flat_map(floats).collect();
    let matrix = Matrix { columns: 20, values: cells.clone() };
    let typed = PredictRequest { model: CREDIT.to_owned(), input: Some(Input::Matrix(matrix)) };
    let typed = predict.client().predict(typed).await.unwrap().into_inner();

    let request = ModelInferRequest { id: "seven".to_owned(), ..rows(CREDIT, &cells) };
    let answer = client.model_infer(request).await.unwrap().into_inner();
    assert_eq!((answer.id.as_str(), answer.model_version.as_str()), ("seven", "1"));
    assert_eq!(named(&answer), ["probability", "margin"]);
    assert_eq!(answer.outputs[1].shape, [200]);
    assert_eq!(raw_floats(&answer.raw_output_contents[1]), typed.margins);
    assert_eq!(raw_floats(&answer.raw_output_contents[0]), typed.probabilities);

    let contents = Some(InferTensorContents { fp32_contents: cells, ..InferTensorContents::default() });
    let input = InferInputTensor { contents, ..tensor("input", "FP32", &[200, 20]) };
    let answer = client.model_infer(want(ask(CREDIT, vec![input], Vec::new()), &["margin"])).await.unwrap();
    let answer = answer.into_inner();
    assert_eq!((named(&answer), answer.raw_output_contents.len()), (vec!["margin"], 0));
    assert_eq!(answer.outputs[0].contents.as_ref().unwrap().fp32_contents, typed.margins);
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_versions_find_what_is_served() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    registry.publish_credit_risk(2, Some("challenger")).await;
    let (predict, _dir) = Predict::warm(&registry, &["credit-risk@challenger", CREDIT]).await;
    let mut client = predict.inference();
    let cells = [1.0; 20];

    for (name, version, answers) in [
        ("credit-risk", "", "2"),
        ("credit-risk", "1", "1"),
        ("credit-risk", "2", "2"),
        (CREDIT, "", "1"),
        (CREDIT, "1", "1"),
        ("credit-risk/1", "", "1"),
        ("credit-risk/2", "2", "2"),
    ] {
        let request = ModelInferRequest { model_version: version.to_owned(), ..rows(name, &cells) };
        let answer = client.model_infer(request).await.unwrap().into_inner();
        assert_eq!((answer.model_name.as_str(), answer.model_version.as_str()), (name, answers));
        let ready = ModelReadyRequest { name: name.to_owned(), version: version.to_owned() };
        assert!(client.model_ready(ready).await.unwrap().into_inner().ready);
    }
    for (name, version) in [("fraud", ""), ("credit-risk", "3"), (CREDIT, "2"), ("credit-risk@none", "")] {
        let request = ModelInferRequest { model_version: version.to_owned(), ..rows(name, &cells) };
        let refused = client.model_infer(request).await.unwrap_err();
        assert_eq!((refused.code(), told(&refused).0.as_str()), (Code::NotFound, "MODEL_NOT_SERVED"), "{name}");
        let ready = ModelReadyRequest { name: name.to_owned(), version: version.to_owned() };
        assert!(!client.model_ready(ready).await.unwrap().into_inner().ready);
    }
    for (name, version, field) in [
        ("", "", "model_name"),
        ("a b", "", "model_name"),
        ("credit-risk", "x", "model_version"),
        (CREDIT, "0", "model_version"),
    ] {
        let request = ModelInferRequest { model_version: version.to_owned(), ..rows(name, &cells) };
        assert_eq!(told(&client.model_infer(request).await.unwrap_err()).1, [field], "{name}, {version}");
    }
    let index = client.repository_index(RepositoryIndexRequest::default()).await.unwrap().into_inner().models;
    let index: Vec<_> = index.iter().map(|it| (it.name.as_str(), it.version.as_str(), it.state.as_str())).collect();
    assert_eq!(index, [("credit-risk", "2", "READY"), ("credit-risk", "1", "READY")]);
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_embedded_and_one_bad_text_is_told_as_the_caller_chooses() {
    let registry = Registry::start().await;
    registry.publish_text(EMBEDDER, Task::TextEmbedding).await;
    let (predict, _dir) = Predict::warm(&registry, &["all-MiniLM-L6-v2@champion"]).await;
    let mut client = predict.inference();

    let typed = EmbedRequest {
        model: format!("{EMBEDDER}@champion"),
        inputs: vec!["a used car".to_owned(), "a boat".to_owned()],
        ..EmbedRequest::default()
    };
    let typed = predict.client().embed(typed).await.unwrap().into_inner().embeddings;
    let answer = client.model_infer(texts(EMBEDDER, &["a used car", "a boat"])).await.unwrap().into_inner();
    assert_eq!(named(&answer), ["embedding", "tokens", "error"]);
    let values = &answer.outputs[0].contents.as_ref().unwrap().fp32_contents;
    let expected: Vec<f32> = typed.iter().flat_map(|it| it.values.clone()).collect();
    assert!(values.iter().zip(&expected).all(|(one, other)| (one - other).abs() < 1e-5));

    let long = "x".repeat(10 << 20);
    let mixed = ["a used car", "", &long];
    let refused = client.model_infer(texts(EMBEDDER, &mixed)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(told(&refused), ("EMPTY_INPUT".to_owned(), vec!["inputs[0].contents[1]".to_owned()]));
    let refused = client.model_infer(want(texts(EMBEDDER, &[&long]), &["embedding"])).await.unwrap_err();
    assert_eq!(told(&refused), ("TOO_LONG".to_owned(), vec!["inputs[0].contents[0]".to_owned()]));
    let told = client.model_infer(want(texts(EMBEDDER, &mixed), &["embedding", "error"])).await.unwrap().into_inner();
    let errors = &told.outputs[1].contents.as_ref().unwrap().bytes_contents;
    let errors: Vec<_> = errors.iter().map(|error| String::from_utf8_lossy(error)).collect();
    assert_eq!(errors[0], "");
    assert!(errors[1].starts_with("EMPTY_INPUT: ") && errors[2].starts_with("TOO_LONG: "), "{errors:?}");
    let values = &told.outputs[0].contents.as_ref().unwrap().fp32_contents;
    assert!(values[..384].iter().all(|value| value.is_finite()) && values[384..].iter().all(|value| value.is_nan()));
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_counted_deadlines_kept_and_streams_go_on_after_an_error() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let (predict, _dir) = Predict::warm(&registry, &[CREDIT]).await;
    let mut client = predict.inference();
    let cells = [1.0; 20];

    for _ in 0..3 {
        client.model_infer(rows("credit-risk", &cells)).await.unwrap();
    }
    client.model_infer(rows("credit-risk", &[1.0; 40]).clone()).await.unwrap();
    let bad = ask("credit-risk", vec![tensor("input", "FP32", &[1, 19])], vec![vec![0; 76]]);
    let refused = client.model_infer(bad).await.unwrap_err();
    assert_eq!(told(&refused), ("WRONG_SHAPE".to_owned(), vec!["inputs[0].shape".to_owned()]));
    let statistics = ModelStatisticsRequest::default();
    let statistics = client.model_statistics(statistics).await.unwrap().into_inner().model_stats.remove(0);
    let inference = statistics.inference_stats.unwrap();
    assert_eq!((inference.success.unwrap().count, inference.fail.unwrap().count), (4, 1));
    assert_eq!((statistics.inference_count, statistics.execution_count), (5, 4));
    assert_eq!(statistics.batch_stats.iter().map(|it| it.batch_size).collect::<Vec<_>>(), [1, 2]);
    assert!(statistics.last_inference > 1_700_000_000_000);

    let mut late = Request::new(rows("credit-risk", &cells));
    late.set_timeout(Duration::from_nanos(1));
    assert_eq!(client.model_infer(late).await.unwrap_err().code(), Code::DeadlineExceeded);

    let asked = (0..50).map(|number| {
        let name = if number % 7 == 3 { "fraud" } else { "credit-risk" };
        ModelInferRequest { id: number.to_string(), ..rows(name, &vec![1.0; 20 * (1 + number % 3)]) }
    });
    let asked: Vec<_> = asked.collect();
    let mut answers = client.model_stream_infer(futures::stream::iter(asked)).await.unwrap().into_inner();
    for number in 0..50 {
        let answer = answers.message().await.unwrap().unwrap();
        let response = answer.infer_response.unwrap();
        assert_eq!(response.id, number.to_string());
        assert_eq!(answer.error_message.contains("is not served"), number % 7 == 3, "{}", answer.error_message);
        assert_eq!(response.raw_output_contents.is_empty(), number % 7 == 3);
    }
    assert!(answers.message().await.unwrap().is_none());
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_refused() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let dir = tempfile::tempdir().unwrap();
    let mut small = config(dir.path(), &registry.url(), &[CREDIT]);
    small.server.max_message_bytes = 1 << 20;
    let predict = Predict::start(small).await;
    predict.wait_ready().await;
    let refused: Status = predict.inference().model_infer(rows(CREDIT, &vec![0.0; 300_000])).await.unwrap_err();
    assert_eq!((refused.code(), told(&refused).0.as_str()), (Code::OutOfRange, "MESSAGE_TOO_LARGE"));
    let mut squeezing = predict.inference().send_compressed(CompressionEncoding::Gzip);
    squeezing.model_infer(rows(CREDIT, &[0.0; 20])).await.unwrap();
    let refused: Status = squeezing.model_infer(rows(CREDIT, &vec![0.0; 300_000])).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    predict.stop().await;
}
