//! What holds for every model family. A family is one line of [`families`] and a function that starts it.

use std::{collections::BTreeMap, path::PathBuf, time::Instant};

use futures::future::{BoxFuture, FutureExt, join_all};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};
use tonic::{Code, Status};
use verdict_chassis::status;

use super::{
    Asked, Served,
    tensor::{Data, Datatype, Tensor},
};
use crate::{
    Config,
    admission::Admission,
    convert,
    error::{Error, Result},
    model,
    release::{Artifact, Release, Task},
};

/// A family under test.
struct Family {
    served: Served,
    /// Inputs that are answered, of several sizes.
    calls: Vec<Vec<Tensor>>,
    /// What the typed calls answer to the same.
    typed: for<'a> fn(&'a Served, Vec<Tensor>) -> BoxFuture<'a, Vec<Tensor>>,
}

macro_rules! families {
    ($($name:ident),*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let family = super::$name();
                outputs_are_as_described(&family).await;
                what_is_not_asked_for_is_absent(&family).await;
                wrong_tensors_are_refused_by_name(&family).await;
                an_empty_batch_is_refused(&family).await;
                values_that_are_none_are_refused_or_missing(&family).await;
                answers_are_those_of_the_typed_calls(&family).await;
                the_same_question_has_the_same_answer(&family).await;
                after_the_deadline_nothing_is_computed(&family).await;
                calls_at_the_same_time_do_not_mix(&family).await;
                calls_and_batches_are_counted(&family).await;
                whatever_is_sent_nothing_panics(&family).await;
            }
        )*
    };
}

mod every_family {
    use super::*;

    families!(
        tabular,
        tabular_multiclass,
        tabular_regression,
        embedding,
        reranking,
        sparse,
        classification,
        generation
    );
}

fn tabular() -> Family {
    rows_of(start(Task::TabularClassification, demo_model()), 20)
}

fn tabular_multiclass() -> Family {
    rows_of(start_golden(Task::TabularClassification, "lgb_multi_cat.txt", "model.txt"), 8)
}

/// Two numbers a row.
fn tabular_regression() -> Family {
    rows_of(start_golden(Task::TabularRegression, "xgb_targets.json", "model.json"), 8)
}

fn rows_of(served: Served, columns: usize) -> Family {
    let rows = |count: usize| {
        let cells = (0..count * columns).map(|at| if at % 17 == 5 { f32::NAN } else { (at * 7919 % 13) as f32 });
        vec![Tensor::new("input", [count, columns], Data::Fp32(cells.collect()))]
    };
    Family {
        served,
        calls: vec![rows(1), rows(7), rows(900)],
        typed: |served, mut inputs| {
            async move {
                let tabular: &crate::tabular::Tabular = served.typed().unwrap();
                let input = inputs.remove(0);
                let outputs = tabular.model().num_outputs();
                let mut shape = vec![input.shape[0]];
                if outputs > 1 {
                    shape.push(outputs);
                }
                let (margins, _) = tabular.margins(input.into_floats().unwrap(), Admission::default()).await.unwrap();
                vec![Tensor::new("margin", shape, Data::Fp32(margins))]
            }
            .boxed()
        },
    }
}

fn demo_model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../crates/demo/data/credit-risk/1")
}

/// Starts a small model that the inference crate carries.
fn start_golden(task: Task, name: &str, file: &str) -> Served {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../crates/inference/tests/golden/trees");
    let packed = std::fs::File::open(golden.join(format!("{name}.gz"))).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut unpacked = std::fs::File::create(dir.path().join(file)).unwrap();
    std::io::copy(&mut flate2::read::GzDecoder::new(packed), &mut unpacked).unwrap();
    start(task, dir.path().to_owned())
}

fn embedding() -> Family {
    let texts = |texts: &[&str]| vec![Tensor::texts("text", texts.iter().copied())];
    let mut raw = texts(&["a bank lends money", "cats sleep"]);
    raw.push(Tensor::new("normalize", [1], Data::Bool(vec![false])));
    Family {
        served: start(Task::TextEmbedding, verdict_testkit::models::dir("all-MiniLM-L6-v2")),
        calls: vec![texts(&["one"]), texts(&["a bank lends money", "cats sleep", "ein kurzer Satz"]), raw],
        typed: |served, mut inputs| {
            async move {
                let embedding: &crate::text::Embedding = served.typed().unwrap();
                let normalize = (inputs.len() > 1).then_some(false);
                let texts = inputs.remove(0).into_texts().unwrap();
                let count = texts.len();
                let (items, _) = embedding.embed(texts, false, normalize, Admission::default()).await.unwrap();
                let values = items.into_iter().flat_map(|item| item.unwrap().values).collect();
                vec![Tensor::new("embedding", [count, 384], Data::Fp32(values))]
            }
            .boxed()
        },
    }
}

fn reranking() -> Family {
    let call = |documents: &[&str]| {
        let query = Tensor::texts("query", ["who lends money"]);
        vec![query, Tensor { at: 1, ..Tensor::texts("documents", documents.iter().copied()) }]
    };
    Family {
        served: start(Task::TextReranking, verdict_testkit::models::dir("ms-marco-MiniLM-L-12-v2")),
        calls: vec![call(&["a bank"]), call(&["A bank lends money.", "Cats sleep.", "x"])],
        typed: |served, mut inputs| {
            async move {
                let reranking: &crate::text::Reranking = served.typed().unwrap();
                let documents = inputs.remove(1).into_texts().unwrap();
                let query = inputs.remove(0).into_texts().unwrap().remove(0);
                let (items, _) = reranking.score(query, documents, Admission::default()).await.unwrap();
                vec![Tensor::floats("logit", items.into_iter().map(|item| item.unwrap().logit).collect())]
            }
            .boxed()
        },
    }
}

fn sparse() -> Family {
    let texts = |texts: &[&str]| vec![Tensor::texts("text", texts.iter().copied())];
    Family {
        served: start(Task::TextSparseEmbedding, verdict_testkit::models::dir("splade-tiny")),
        calls: vec![texts(&["one"]), texts(&["a bank lends money", "cats sleep", "ein kurzer Satz"])],
        typed: |served, mut inputs| {
            async move {
                let sparse: &crate::text::SparseEmbedding = served.typed().unwrap();
                let texts = inputs.remove(0).into_texts().unwrap();
                let (items, _) = sparse.embed(texts, false, None, Admission::default()).await.unwrap();
                let pairs = items.into_iter().flat_map(|item| item.unwrap().pairs);
                vec![Tensor::floats("values", pairs.map(|(_, weight)| weight).collect())]
            }
            .boxed()
        },
    }
}

fn classification() -> Family {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../crates/inference/tests/golden/tiny_classifier");
    let texts = |texts: &[&str]| vec![Tensor::texts("text", texts.iter().copied())];
    Family {
        served: start(Task::TextClassification, dir),
        calls: vec![texts(&["bad risk"]), texts(&["the customer pays on time", "zebra", "a good bank"])],
        typed: |served, mut inputs| {
            async move {
                let classification: &crate::text::Classification = served.typed().unwrap();
                let texts = inputs.remove(0).into_texts().unwrap();
                let count = texts.len();
                let (items, _) = classification.logits(texts, false, Admission::default()).await.unwrap();
                let values = items.into_iter().flat_map(|item| item.unwrap().0).collect();
                vec![Tensor::new("logit", [count, 3], Data::Fp32(values))]
            }
            .boxed()
        },
    }
}

fn generation() -> Family {
    let call = |prompts: &[&str]| {
        let most = Tensor { at: 1, ..Tensor::new("max_tokens", [1], Data::Uint32(vec![4])) };
        let temperature = Tensor { at: 2, ..Tensor::floats("temperature", vec![0.0]) };
        vec![Tensor::texts("text_input", prompts.iter().copied()), most, temperature]
    };
    Family {
        served: start(Task::TextGeneration, verdict_testkit::models::dir("gemma-3-270m")),
        calls: vec![call(&["The capital of France is"]), call(&["One, two,", "Water is"])],
        typed: |served, mut inputs| {
            async move {
                use crate::generate::{Event, Generation, Start};
                let generation: &Generation = served.typed().unwrap();
                let mut texts = Vec::new();
                for prompt in inputs.remove(0).into_texts().unwrap() {
                    let sampling = verdict_inference::generation::Sampling::greedy(4);
                    let start = Start::Prompt(prompt);
                    let mut running = generation.generate(start, sampling, None, Admission::default()).await.unwrap();
                    let mut text = String::new();
                    while let Some(event) = running.next().await {
                        if let Event::Step(step) = event.unwrap() {
                            text.push_str(&step.text);
                        }
                    }
                    texts.push(text);
                }
                vec![Tensor::texts("text_output", texts)]
            }
            .boxed()
        },
    }
}

fn start(task: Task, dir: PathBuf) -> Served {
    let names = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let artifact = |path| Artifact { path, size: 1, sha256: String::new() };
    let is_text = matches!(
        task,
        Task::TextEmbedding | Task::TextReranking | Task::TextSparseEmbedding | Task::TextClassification
    );
    let release = Release {
        model: "m".to_owned(),
        version: 1,
        task,
        digest: String::new(),
        // In 8 bits a text that idle threads share may be rounded otherwise here and there.
        parameters: if is_text {
            BTreeMap::from([("precision".to_owned(), "fp32".to_owned())])
        } else {
            BTreeMap::new()
        },
        inputs: Vec::new(),
        artifacts: names.map(artifact).collect(),
    };
    let sizing = model::Sizing { answers: None, ..Config::default().sizing() };
    model::start(&release, &dir, &sizing).unwrap()
}

async fn ask(family: &Family, inputs: Vec<Tensor>, outputs: &[&str]) -> Result<Vec<Tensor>> {
    let outputs = outputs.iter().map(|name| (*name).to_owned()).collect();
    let asked = Asked { inputs, outputs, admission: Admission::default() };
    family.served.infer(asked).await.map(|answered| answered.outputs)
}

/// Asks what is refused; returns reason and fields.
async fn told(family: &Family, inputs: Vec<Tensor>, outputs: &[&str]) -> (String, Vec<String>) {
    let refused = Status::from(ask(family, inputs, outputs).await.expect_err("refused"));
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    (status::reason(&refused).unwrap(), status::fields(&refused).into_iter().map(|field| field.field).collect())
}

async fn outputs_are_as_described(family: &Family) {
    for call in &family.calls {
        let outputs = ask(family, call.clone(), &[]).await.unwrap();
        let specs = &family.served.signature.outputs;
        assert_eq!(outputs.len(), specs.len());
        for (spec, output) in specs.iter().zip(&outputs) {
            assert_eq!((&spec.name, spec.datatype), (&output.name, output.data.datatype()));
            assert!(spec.fits(&output.shape), "{output:?}");
            assert_eq!(output.shape.iter().product::<usize>(), output.data.len());
        }
    }
}

async fn what_is_not_asked_for_is_absent(family: &Family) {
    let names: Vec<_> = family.served.signature.outputs.iter().map(|spec| spec.name.as_str()).collect();
    let call = || family.calls[0].clone();
    for name in &names {
        let outputs = ask(family, call(), &[name]).await.unwrap();
        assert_eq!(outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>(), [*name]);
    }
    let backwards: Vec<_> = names.iter().rev().copied().collect();
    let outputs = ask(family, call(), &backwards).await.unwrap();
    assert_eq!(outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>(), backwards);
    let unknown = told(family, call(), &[names[0], "nothing"]).await;
    assert_eq!(unknown, ("OUTPUT_UNKNOWN".to_owned(), vec!["outputs[1].name".to_owned()]));
    let twice = told(family, call(), &[names[0], names[0]]).await;
    assert_eq!(twice, ("OUTPUT_REPEATED".to_owned(), vec!["outputs[1].name".to_owned()]));
}

async fn wrong_tensors_are_refused_by_name(family: &Family) {
    let good = &family.calls[0];
    for (at, tensor) in good.iter().enumerate() {
        let spec = family.served.signature.inputs.iter().find(|spec| spec.name == tensor.name).unwrap();
        let with = |changed: Tensor| {
            let mut call = good.clone();
            call[at] = changed;
            call
        };
        let field = |part: &str| vec![format!("inputs[{at}].{part}")];
        let renamed = Tensor { name: "nothing".to_owned(), ..tensor.clone() };
        assert_eq!(told(family, with(renamed), &[]).await, ("INPUT_UNKNOWN".to_owned(), field("name")));

        let other = if spec.datatype == Datatype::Int64 { Data::Fp64(vec![0.0]) } else { Data::Int64(vec![0]) };
        let other = Tensor { data: other, shape: vec![1], ..tensor.clone() };
        assert_eq!(told(family, with(other), &[]).await, ("WRONG_DATATYPE".to_owned(), field("datatype")));

        let deeper = [&tensor.shape[..], &[1]].concat();
        let flat = vec![tensor.data.len(); usize::from(tensor.shape.len() != 1)];
        for shape in [deeper, flat] {
            let changed = Tensor { shape, ..tensor.clone() };
            assert_eq!(told(family, with(changed), &[]).await, ("WRONG_SHAPE".to_owned(), field("shape")));
        }

        let twice = Tensor { at: good.len(), ..tensor.clone() };
        let refused = told(family, [&good[..], &[twice]].concat(), &[]).await;
        assert_eq!(refused, ("INPUT_REPEATED".to_owned(), vec![format!("inputs[{}].name", good.len())]));

        let mut without = good.clone();
        without.remove(at);
        if spec.optional {
            ask(family, without, &[]).await.unwrap();
        } else {
            let refused = told(family, without, &[]).await;
            assert_eq!(refused, ("INPUT_MISSING".to_owned(), vec!["inputs".to_owned()]));
        }
    }
    assert_eq!(told(family, Vec::new(), &[]).await.0, "INPUT_MISSING");
}

async fn an_empty_batch_is_refused(family: &Family) {
    for (at, spec) in family.served.signature.inputs.iter().enumerate() {
        if spec.optional || spec.shape.first() != Some(&-1) {
            continue;
        }
        let mut call = family.calls[0].clone();
        let data = if spec.datatype == Datatype::Fp32 { Data::Fp32(Vec::new()) } else { Data::Bytes(Vec::new()) };
        call[at].shape[0] = 0;
        call[at].data = data;
        let refused = told(family, call, &[]).await;
        assert_eq!(refused, ("WRONG_SHAPE".to_owned(), vec![format!("inputs[{at}].shape")]));
    }
}

async fn values_that_are_none_are_refused_or_missing(family: &Family) {
    for at in 0..family.calls[0].len() {
        let changed = |change: &dyn Fn(&mut Data)| {
            let mut call = family.calls[0].clone();
            change(&mut call[at].data);
            call
        };
        match &family.calls[0][at].data {
            Data::Fp32(_) => {
                for infinite in [f32::INFINITY, f32::NEG_INFINITY] {
                    let set = |data: &mut Data| *data = filled(data, infinite);
                    let (_, fields) = told(family, changed(&set), &[]).await;
                    assert_eq!(fields.len(), 1, "{fields:?}");
                }
                let missing = changed(&|data| *data = filled(data, f32::NAN));
                match ask(family, missing, &[]).await {
                    Ok(outputs) => assert!(outputs.iter().all(|output| is_finite(&output.data)), "{outputs:?}"),
                    Err(refused) => {
                        let refused = Status::from(refused);
                        assert_eq!((refused.code(), status::fields(&refused).len()), (Code::InvalidArgument, 1));
                    }
                }
            }
            Data::Bytes(_) => {
                let broken = changed(&|data| {
                    if let Data::Bytes(elements) = data {
                        elements[0] = vec![b'a', 0xff];
                    }
                });
                let refused = told(family, broken, &[]).await;
                assert_eq!(refused, ("WRONG_VALUE".to_owned(), vec![format!("inputs[{at}].contents[0]")]));
            }
            _ => {}
        }
    }
}

fn filled(data: &Data, value: f32) -> Data {
    Data::Fp32(vec![value; data.len()])
}

fn is_finite(data: &Data) -> bool {
    match data {
        Data::Fp32(values) => values.iter().all(|value| value.is_finite()),
        _ => true,
    }
}

async fn answers_are_those_of_the_typed_calls(family: &Family) {
    for call in &family.calls {
        let outputs = ask(family, call.clone(), &[]).await.unwrap();
        for typed in (family.typed)(&family.served, call.clone()).await {
            let output = outputs.iter().find(|output| output.name == typed.name).unwrap();
            close(std::slice::from_ref(output), &[typed]);
        }
    }
}

/// Asserts that two answers say the same; what shares a batch with it may move a number in its last digits.
fn close(ours: &[Tensor], theirs: &[Tensor]) {
    assert_eq!(ours.len(), theirs.len());
    for (one, other) in ours.iter().zip(theirs) {
        assert_eq!((&one.name, &one.shape), (&other.name, &other.shape));
        match (&one.data, &other.data) {
            (Data::Fp32(one), Data::Fp32(other)) => {
                for (one, other) in one.iter().zip(other) {
                    assert!((one - other).abs() <= 1e-4 * one.abs().max(1.0), "{one} and {other}");
                }
            }
            (one, other) => assert_eq!(one, other),
        }
    }
}

async fn the_same_question_has_the_same_answer(family: &Family) {
    for call in &family.calls {
        let first = ask(family, call.clone(), &[]).await.unwrap();
        close(&ask(family, call.clone(), &[]).await.unwrap(), &first);
    }
}

async fn after_the_deadline_nothing_is_computed(family: &Family) {
    let before = family.served.statistics.counts().executions;
    for call in &family.calls {
        let admission = Admission::from(Some(Instant::now()));
        let asked = Asked { inputs: call.clone(), outputs: Vec::new(), admission };
        assert!(matches!(family.served.infer(asked).await, Err(Error::Expired)));
    }
    assert_eq!(family.served.statistics.counts().executions, before);
}

async fn calls_at_the_same_time_do_not_mix(family: &Family) {
    let mut alone = Vec::new();
    for call in &family.calls {
        alone.push(ask(family, call.clone(), &[]).await.unwrap());
    }
    let rounds = 4;
    let together = (0..rounds).flat_map(|_| family.calls.iter().map(|call| ask(family, call.clone(), &[])));
    for (place, outputs) in join_all(together).await.into_iter().enumerate() {
        close(&outputs.unwrap(), &alone[place % alone.len()]);
    }
}

async fn calls_and_batches_are_counted(family: &Family) {
    let before = family.served.statistics.counts();
    ask(family, family.calls[0].clone(), &[]).await.unwrap();
    ask(family, Vec::new(), &[]).await.unwrap_err();
    let after = family.served.statistics.counts();
    assert_eq!((after.success.count - before.success.count, after.fail.count - before.fail.count), (1, 1));
    assert!(after.success.time > before.success.time && after.infer.time > before.infer.time);
    assert!(after.executions > before.executions && after.items > before.items && after.last >= before.last);
    assert_eq!(after.batches.values().map(|span| span.count).sum::<u64>(), after.executions);
}

async fn whatever_is_sent_nothing_panics(family: &Family) {
    let specs = &family.served.signature;
    let names: Vec<&'static str> = specs
        .inputs
        .iter()
        .chain(&specs.outputs)
        .map(|spec| &*Box::leak(spec.name.clone().into_boxed_str()))
        .chain(["nothing"])
        .collect();
    let strategy = convert::inference::any_request(Box::leak(names.into_boxed_slice()));
    let mut runner = TestRunner::deterministic();
    for _ in 0..500 {
        let request = strategy.new_tree(&mut runner).unwrap().current();
        let Ok(read) = convert::inference::infer(request, Admission::default()) else { continue };
        if let Err(error) = family.served.infer(read.asked).await {
            assert_ne!(Status::from(error).code(), Code::Internal);
        }
    }
}
