use tonic::Code;
use verdict_api::{
    predict::{
        ClassifyRequest, EmbedRequest, EmbedSparseRequest, GetTokenizerRequest, RerankRequest, ServedModelState,
        TokenizeRequest, get_tokenizer_response::Part,
    },
    registry::Task,
};
use verdict_testkit::golden::{cosine, max_abs};

use crate::world::{Predict, Registry, config, floats, golden, told};

const EMBEDDER: &str = "all-MiniLM-L6-v2";
const RERANKER: &str = "ms-marco-MiniLM-L-12-v2";

fn embed(inputs: Vec<String>) -> EmbedRequest {
    EmbedRequest { model: format!("{EMBEDDER}@champion"), inputs, truncate: false, normalize: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_are_those_of_the_reference_and_bad_inputs_fail_alone() {
    let registry = Registry::start().await;
    let published = registry.publish_text(EMBEDDER, Task::TextEmbedding).await;
    let (predict, _dir) = Predict::warm(&registry, &["all-MiniLM-L6-v2@champion"]).await;
    let mut client = predict.client();

    let golden = golden("minilm_l6_v2.json");
    // The reference also has an empty text; here that is an error of its own, below.
    let golden: Vec<_> = golden.as_array().unwrap().iter().filter(|case| case["text"] != "").collect();
    let texts: Vec<_> = golden.iter().map(|case| case["text"].as_str().unwrap().to_owned()).collect();
    let answer = client.embed(embed(texts.clone())).await.unwrap().into_inner();
    for (case, embedding) in golden.iter().zip(&answer.embeddings) {
        let reference = floats(&case["embedding"]);
        assert_eq!(embedding.error, None);
        assert_eq!(embedding.tokens as usize, case["input_ids"].as_array().unwrap().len());
        assert!(cosine(&embedding.values, &reference) > 0.9999);
        assert!(max_abs(&embedding.values, &reference) < 1e-4);
    }
    let served = answer.served_by.unwrap();
    assert_eq!((served.model.as_str(), served.version, served.alias.as_str()), (EMBEDDER, 1, "champion"));
    assert_eq!(served.digest, published.digest);
    assert!(served.compute_ms > 0.0 && served.queue_ms >= 0.0 && served.batch_size >= 1, "{served:?}");

    let long = "word ".repeat(400);
    let mixed = embed(vec![texts[0].clone(), String::new(), long.clone()]);
    let answer = client.embed(mixed.clone()).await.unwrap().into_inner();
    assert_eq!(answer.embeddings[0].values.len(), 384);
    let reasons: Vec<_> =
        answer.embeddings[1..].iter().map(|embedding| embedding.error.clone().unwrap().reason).collect();
    assert_eq!(reasons, ["EMPTY_INPUT", "TOO_LONG"]);
    let cut = client.embed(EmbedRequest { truncate: true, ..mixed.clone() }).await.unwrap().into_inner();
    assert_eq!((cut.embeddings[2].tokens, cut.embeddings[2].error.clone()), (256, None));

    let raw = client.embed(EmbedRequest { normalize: Some(false), ..embed(texts.clone()) }).await.unwrap().into_inner();
    let length = |values: &[f32]| values.iter().map(|value| value * value).sum::<f32>().sqrt();
    assert!((length(&raw.embeddings[0].values) - 1.0).abs() > 0.01);
    assert!(cosine(&raw.embeddings[0].values, &floats(&golden[0]["embedding"])) > 0.9999);

    for inputs in [Vec::new(), vec!["x".to_owned(); 1025]] {
        let refused = client.embed(embed(inputs)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(told(&refused), ("INVALID_REQUEST".to_owned(), vec!["inputs".to_owned()]));
    }

    let tokenize =
        TokenizeRequest { model: mixed.model.clone(), inputs: vec![texts[0].clone()], add_special_tokens: true };
    let tokens = client.tokenize(tokenize).await.unwrap().into_inner().tokens.remove(0);
    let ids: Vec<_> = golden[0]["input_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    assert_eq!(tokens.ids.iter().map(|id| u64::from(*id)).collect::<Vec<_>>(), ids);
    assert_eq!(&texts[0][tokens.starts[2] as usize..tokens.ends[2] as usize], "quick");

    let mut parts = client.get_tokenizer(GetTokenizerRequest { model: mixed.model }).await.unwrap().into_inner();
    let Some(Part::Header(header)) = parts.message().await.unwrap().unwrap().part else { panic!("a header first") };
    assert_eq!((header.max_length, header.dimensions), (256, 384));
    let mut json = Vec::new();
    while let Some(message) = parts.message().await.unwrap() {
        let Some(Part::Chunk(chunk)) = message.part else { panic!("chunks after the header") };
        json.extend(chunk);
    }
    assert_eq!(json, std::fs::read(verdict_testkit::models::dir(EMBEDDER).join("tokenizer.json")).unwrap());

    let wrong = RerankRequest {
        model: format!("{EMBEDDER}@champion"),
        query: "q".to_owned(),
        documents: vec!["d".to_owned()],
        top_n: 0,
    };
    let refused = client.rerank(wrong).await.unwrap_err();
    assert_eq!((refused.code(), told(&refused).0.as_str()), (Code::InvalidArgument, "WRONG_TASK"));
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reranking_gives_the_reference_logits_best_first() {
    let registry = Registry::start().await;
    registry.publish_text(RERANKER, Task::TextReranking).await;
    let (predict, _dir) = Predict::warm(&registry, &["ms-marco-MiniLM-L-12-v2@champion"]).await;
    let mut client = predict.client();
    let request = |query: &str, documents: &[&str], top_n| RerankRequest {
        model: format!("{RERANKER}@champion"),
        query: query.to_owned(),
        documents: documents.iter().map(|document| (*document).to_owned()).collect(),
        top_n,
    };

    for case in golden("reranker_l12.json").as_array().unwrap().iter().filter(|case| case["query"] != "") {
        let (query, passage) = (case["query"].as_str().unwrap(), case["passage"].as_str().unwrap());
        let answer = client.rerank(request(query, &[passage], 0)).await.unwrap().into_inner();
        let logit = f64::from(answer.results[0].logit);
        assert!((logit - case["logit"].as_f64().unwrap()).abs() < 1e-3, "{query}: {logit}");
    }

    let documents = ["Cheese is made from milk.", "", "Berlin has 3.5 million inhabitants.", "Berlin is in Germany."];
    let query = "How many people live in Berlin?";
    let all = client.rerank(request(query, &documents, 0)).await.unwrap().into_inner();
    assert_eq!(all.results[0].index, 2);
    assert!(all.results.windows(2).all(|pair| pair[0].score >= pair[1].score));
    assert_eq!(all.results.len() + all.failed.len(), 4);
    let best = client.rerank(request(query, &documents, 1)).await.unwrap().into_inner();
    assert_eq!(best.results, all.results[..1]);

    let refused = client.rerank(request(" ", &documents, 0)).await.unwrap_err();
    assert_eq!(told(&refused).1, ["query"]);
    let refused = client.rerank(request(query, &[], 0)).await.unwrap_err();
    assert_eq!(told(&refused).1, ["documents"]);
    let refused = client.rerank(request(query, &documents, 2000)).await.unwrap_err();
    assert_eq!(told(&refused).1, ["top_n"]);
    predict.stop().await;
}

const SPLADE: &str = "splade-tiny";

#[tokio::test(flavor = "multi_thread")]
async fn sparse_embeddings_are_those_of_the_reference_and_bad_inputs_fail_alone() {
    let registry = Registry::start().await;
    registry.publish_text(SPLADE, Task::TextSparseEmbedding).await;
    let (predict, _dir) = Predict::warm(&registry, &["splade-tiny@champion"]).await;
    let mut client = predict.client();
    let request = |inputs: Vec<String>, truncate, top_k| EmbedSparseRequest {
        model: format!("{SPLADE}@champion"),
        inputs,
        truncate,
        top_k,
    };

    let golden = golden("splade_tiny.json");
    let golden = golden.as_array().unwrap();
    let mut inputs: Vec<_> = golden.iter().map(|case| case["text"].as_str().unwrap().to_owned()).collect();
    inputs.extend([String::new(), "word ".repeat(600)]);
    let answer = client.embed_sparse(request(inputs.clone(), false, 0)).await.unwrap().into_inner();
    assert_eq!(answer.embeddings.len(), inputs.len());
    let mut tokens = 0;
    for (case, embedding) in golden.iter().zip(&answer.embeddings) {
        assert_eq!(embedding.error, None);
        assert_eq!(embedding.tokens as usize, case["input_ids"].as_array().unwrap().len());
        assert!(embedding.indices.is_sorted_by(|a, b| a < b) && embedding.indices.len() == embedding.values.len());
        let mut spread = vec![0.0; 30_522];
        for (id, weight) in case["ids"].as_array().unwrap().iter().zip(floats(&case["weights"])) {
            spread[id.as_u64().unwrap() as usize] = weight;
        }
        for (id, weight) in embedding.indices.iter().zip(&embedding.values) {
            assert!(*weight > 0.0);
            spread[*id as usize] -= weight;
        }
        assert!(spread.iter().all(|apart| apart.abs() < 1e-4), "{}", case["text"]);
        tokens += embedding.tokens;
    }
    let reasons: Vec<_> =
        answer.embeddings[golden.len()..].iter().map(|embedding| embedding.error.clone().unwrap().reason).collect();
    assert_eq!(reasons, ["EMPTY_INPUT", "TOO_LONG"]);
    assert_eq!(answer.served_by.unwrap().input_tokens, tokens);

    let few = client.embed_sparse(request(inputs.clone(), true, 5)).await.unwrap().into_inner().embeddings;
    assert_eq!((few[inputs.len() - 1].tokens, few[inputs.len() - 1].error.clone()), (512, None));
    for (few, all) in few.iter().zip(&answer.embeddings).take(golden.len()) {
        let lightest = few.values.iter().copied().fold(f32::INFINITY, f32::min);
        assert_eq!(few.indices.len(), all.indices.len().min(5));
        assert!(few.indices.is_sorted());
        let left = all.indices.iter().zip(&all.values).filter(|(id, _)| !few.indices.contains(id));
        assert!(left.into_iter().all(|(_, weight)| *weight <= lightest + 1e-5));
    }

    let refused = client.embed_sparse(request(Vec::new(), false, 0)).await.unwrap_err();
    assert_eq!(told(&refused), ("INVALID_REQUEST".to_owned(), vec!["inputs".to_owned()]));
    let dense = EmbedRequest { model: format!("{SPLADE}@champion"), inputs, truncate: true, normalize: None };
    let refused = client.embed(dense).await.unwrap_err();
    assert_eq!((refused.code(), told(&refused).0.as_str()), (Code::InvalidArgument, "WRONG_TASK"));
    let mut parts =
        client.get_tokenizer(GetTokenizerRequest { model: format!("{SPLADE}@champion") }).await.unwrap().into_inner();
    let Some(Part::Header(header)) = parts.message().await.unwrap().unwrap().part else { panic!("a header first") };
    assert_eq!((header.max_length, header.dimensions), (512, 30_522));
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_those_of_the_reference_best_first() {
    let registry = Registry::start().await;
    let dir =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/inference/tests/golden/tiny_classifier");
    let parameters = [("precision", "fp32"), ("max_length", "60")];
    registry.publish_with("tiny", Task::TextClassification, dir, Some("champion"), &parameters).await;
    let (predict, _dir) = Predict::warm(&registry, &["tiny@champion"]).await;
    let mut client = predict.client();
    let request = |inputs: Vec<String>, truncate, top_k| ClassifyRequest {
        model: "tiny@champion".to_owned(),
        inputs,
        truncate,
        top_k,
    };

    let golden = golden("tiny_classifier.json");
    let golden: Vec<_> = golden.as_array().unwrap().iter().filter(|case| case["pair"].is_null()).collect();
    let mut inputs: Vec<_> = golden.iter().map(|case| case["text"].as_str().unwrap().to_owned()).collect();
    inputs.extend([" ".to_owned(), "bad ".repeat(80)]);
    let answer = client.classify(request(inputs.clone(), false, 0)).await.unwrap().into_inner();
    for (case, classification) in golden.iter().zip(&answer.classifications) {
        assert_eq!(classification.error, None);
        assert_eq!(classification.tokens as usize, case["ids"].as_array().unwrap().len());
        assert!(classification.labels.windows(2).all(|pair| pair[0].score >= pair[1].score));
        let (logits, softmax) = (floats(&case["logits"]), floats(&case["softmax"]));
        for (at, name) in ["repaid", "late", "lost"].iter().enumerate() {
            let label = classification.labels.iter().find(|label| label.label == *name).unwrap();
            assert!((label.logit - logits[at]).abs() < 1e-3, "{}: {label:?}", case["text"]);
            assert!((label.score - softmax[at]).abs() < 1e-4, "{}: {label:?}", case["text"]);
        }
    }
    let reasons: Vec<_> =
        answer.classifications[golden.len()..].iter().map(|one| one.error.clone().unwrap().reason).collect();
    assert_eq!(reasons, ["EMPTY_INPUT", "TOO_LONG"]);
    let best = client.classify(request(inputs.clone(), true, 1)).await.unwrap().into_inner().classifications;
    assert_eq!((best[inputs.len() - 1].tokens, best[inputs.len() - 1].labels.len()), (60, 1));
    assert_eq!(best[0].labels, answer.classifications[0].labels[..1]);

    let refused = client.classify(request(vec!["x".to_owned(); 1025], false, 0)).await.unwrap_err();
    assert_eq!(told(&refused), ("INVALID_REQUEST".to_owned(), vec!["inputs".to_owned()]));
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_says_its_precision_and_one_that_is_none_is_not_served() {
    let registry = Registry::start().await;
    let publish = async |name: &str, precision: &str| {
        let dir = verdict_testkit::models::dir(EMBEDDER);
        let parameters = [("precision", precision)];
        registry.publish_with(name, Task::TextEmbedding, dir, Some("champion"), &parameters).await;
    };
    for precision in ["fp32", "bf16", "int8", "auto", "fp8"] {
        publish(precision, precision).await;
    }
    let models = ["fp32@champion", "bf16@champion", "int8@champion", "auto@champion"];
    let (predict, _dir) = Predict::warm(&registry, &models).await;
    let mut vectors = Vec::new();
    for model in models {
        let inputs = vec!["A bank lends money to its customers.".to_owned()];
        let request = EmbedRequest { model: model.to_owned(), inputs, truncate: false, normalize: None };
        vectors.push(predict.client().embed(request).await.unwrap().into_inner().embeddings.remove(0).values);
    }
    for (vector, least) in vectors[1..].iter().zip([0.999, 0.985, 0.985]) {
        assert!(cosine(vector, &vectors[0]) > least);
    }
    assert_ne!(vectors[1], vectors[0]);
    assert_ne!(vectors[2], vectors[1]);
    predict.stop().await;

    let dir = tempfile::tempdir().unwrap();
    let predict = Predict::start(config(dir.path(), &registry.url(), &["fp8@champion"])).await;
    predict.wait("it says why", async || predict.served().await[0].state() == ServedModelState::Failed).await;
    let message = predict.served().await.remove(0).message;
    assert!(message.contains("parameter `precision` is `fp8`: auto, fp32, bf16 or int8 is expected"), "{message}");
    predict.stop().await;
}
