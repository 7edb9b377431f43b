use serde_json::Value as Json;
use tonic::Code;
use verdict_api::{
    predict::{
        DecideRequest, EmbedRequest, ExplainRequest, Matrix, PredictRequest, PredictResponse, Row, Rows,
        ServedModelState, Value, explain_request, predict_request::Input, value::Kind,
    },
    registry::Task,
};

use crate::world::{
    PATIENCE, Predict, Registry, applications, config, credit_risk, floats, golden, number, text, told, unpacked,
};

const MODEL: &str = "credit-risk@champion";

fn matrix(columns: u32, values: Vec<f32>) -> PredictRequest {
    PredictRequest { model: MODEL.to_owned(), input: Some(Input::Matrix(Matrix { columns, values })) }
}

fn rows(rows: Vec<Row>) -> PredictRequest {
    PredictRequest { model: MODEL.to_owned(), input: Some(Input::Rows(Rows { rows })) }
}

#[tokio::test(flavor = "multi_thread")]
async fn margins_are_those_of_xgboost_by_name_and_by_matrix() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let (predict, _dir) = Predict::warm(&registry, &[MODEL]).await;
    let mut client = predict.client();

    let golden = golden("german_rows.json");
    let (margins, probabilities) = (floats(&golden["margin"]), floats(&golden["probability"]));
    let cells: Vec<_> = golden["rows"].as_array().unwrap().iter().flat_map(floats).collect();
    let close = |answer: &PredictResponse, most: usize| {
        for (row, (margin, probability)) in answer.margins.iter().zip(&answer.probabilities).enumerate() {
            assert!((margin - margins[row % most]).abs() < 2e-6 * margins[row % most].abs().max(1.0), "row {row}");
            assert!((probability - probabilities[row % most]).abs() < 2e-6, "row {row}");
        }
    };
    let one = client.predict(matrix(20, cells[..20].to_vec())).await.unwrap().into_inner();
    assert_eq!(one.margins.len(), 1);
    close(&one, 200);
    // Large enough to be cut into parts for several workers, and not a multiple of a part.
    let many: Vec<_> = cells.iter().copied().cycle().take(cells.len() * 51).collect();
    let answer = client.predict(matrix(20, many)).await.unwrap().into_inner();
    assert_eq!(answer.margins.len(), 10_200);
    close(&answer, 200);

    let named = applications().into_iter().map(|features| Row { features }).collect();
    let answer = client.predict(rows(named)).await.unwrap().into_inner();
    assert_eq!((answer.margins.len(), answer.served_by.unwrap().version), (10, 1));
    // As many as are laid out off the async threads.
    let named = applications().into_iter().cycle().take(500).map(|features| Row { features }).collect();
    let many = client.predict(rows(named)).await.unwrap().into_inner();
    assert_eq!(many.margins.len(), 500);
    assert!(many.margins.chunks(10).all(|margins| margins == answer.margins));
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_rows_are_refused_field_by_field() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let (predict, _dir) = Predict::warm(&registry, &[MODEL]).await;
    let mut client = predict.client();

    let good = || Row { features: applications().remove(0) };
    let changed = |name: &str, value: Option<Value>| {
        let mut row = good();
        match value {
            Some(value) => row.features.insert(name.to_owned(), value),
            None => row.features.remove(name),
        };
        row
    };
    let truth = Value { kind: Some(Kind::Boolean(true)) };
    for (row, field) in [
        (changed("age_in_years", None), "age_in_years"),
        (changed("age_in_years", Some(Value { kind: None })), "age_in_years"),
        (changed("age_in_years", Some(text("67"))), "age_in_years"),
        (changed("age_in_years", Some(number(67.5))), "age_in_years"),
        (changed("credit_amount", Some(truth)), "credit_amount"),
        (changed("credit_amount", Some(number(f64::NAN))), "credit_amount"),
        (changed("purpose", Some(text("yacht"))), "purpose"),
        (changed("income", Some(number(1.0))), "income"),
    ] {
        let refused = client.predict(rows(vec![good(), row])).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(told(&refused), ("INVALID_REQUEST".to_owned(), vec![format!("rows[1].features.{field}")]));
    }
    for (request, field) in [
        (rows(Vec::new()), "rows"),
        (rows(vec![Row::default(); 10_001]), "rows"),
        (PredictRequest { model: MODEL.to_owned(), input: None }, "input"),
        (matrix(19, vec![0.0; 19]), "matrix.columns"),
        (matrix(20, vec![0.0; 30]), "matrix.values"),
        (PredictRequest { model: "credit-risk".to_owned(), input: None }, "model"),
    ] {
        assert_eq!(told(&client.predict(request).await.unwrap_err()).1, [field]);
    }

    let unknown = PredictRequest { model: "fraud@champion".to_owned(), ..rows(vec![good()]) };
    let refused = client.predict(unknown).await.unwrap_err();
    assert_eq!((refused.code(), told(&refused).0.as_str()), (Code::NotFound, "MODEL_NOT_SERVED"));
    assert!(refused.message().contains("`credit-risk@champion`"), "{}", refused.message());
    let wrong = EmbedRequest { model: MODEL.to_owned(), inputs: vec!["x".to_owned()], ..EmbedRequest::default() };
    assert_eq!(told(&client.embed(wrong).await.unwrap_err()).0, "WRONG_TASK");
    let numbered = PredictRequest { model: "credit-risk/1".to_owned(), ..rows(vec![good()]) };
    let served = client.predict(numbered).await.unwrap().into_inner().served_by.unwrap();
    assert_eq!((served.version, served.alias.as_str()), (1, ""));
    predict.stop().await;
}

/// Reference answers of a small model; a missing value is NaN.
struct Reference {
    cells: Vec<f32>,
    case: Json,
}

impl Reference {
    fn of(name: &str) -> Self {
        let cases: Json = serde_json::from_slice(&unpacked("trees/cases.json.gz")).unwrap();
        let case = cases["cases"][name].clone();
        let cells = &cases["rows"][case["rows"].as_str().unwrap()];
        let cell = |cell: &Json| cell.as_f64().map_or(f32::NAN, |cell| cell as f32);
        Self { cells: cells.as_array().unwrap().iter().map(cell).collect(), case }
    }

    fn check(&self, got: &[f32], key: &str) {
        let expected = floats(&self.case[key]);
        assert_eq!(got.len(), expected.len(), "{key}");
        for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert!(
                (got - expected).abs() <= 1e-5 * expected.abs().max(1.0),
                "{key}[{at}]: {got}, expected {expected}"
            );
        }
    }
}

const MLMODEL: &[u8] = b"artifact_path: model
flavors:
  python_function:
    data: model.lgb
    loader_module: mlflow.lightgbm
  lightgbm:
    code: null
    data: model.lgb
    lgb_version: 4.7.0
    model_class: lightgbm.basic.Booster
mlflow_version: 3.18.0
";

#[tokio::test(flavor = "multi_thread")]
async fn models_of_every_format_answer_as_their_libraries() {
    let registry = Registry::start().await;
    let (classify, regress) = (Task::TabularClassification, Task::TabularRegression);
    let models = [
        ("xgb_binary.json", classify, "model.json", 1),
        ("xgb_cat.ubj", classify, "model.ubj", 1),
        ("xgb_multi.ubj", classify, "model.xgb", 4),
        ("xgb_poisson.json", regress, "model.json", 1),
        ("xgb_targets.json", regress, "model.json", 2),
        ("lgb_zero.txt", classify, "model.txt", 1),
        ("lgb_multi_cat.txt", classify, "model.lgb", 4),
        ("sk_hist_multi.onnx", classify, "model.onnx", 4),
        ("sk_logistic.onnx", classify, "model.onnx", 1),
        ("sk_boosting_regression.onnx", regress, "model.onnx", 1),
    ];
    let served = |name: &str| name.replace('.', "-");
    for (name, task, file, _) in models {
        registry.publish_files(&served(name), task, &[(file, unpacked(&format!("trees/{name}.gz")))]).await;
    }
    let logged = [("model/MLmodel", MLMODEL.to_vec()), ("model/model.lgb", unpacked("trees/lgb_binary.txt.gz"))];
    registry.publish_files("logged", classify, &logged).await;
    let references: Vec<String> = models
        .iter()
        .map(|(name, ..)| served(name))
        .chain(["logged".to_owned()])
        .map(|name| name + "@champion")
        .collect();
    let (predict, _dir) = Predict::warm(&registry, &references.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut client = predict.client();

    let all = models.into_iter().chain([("lgb_binary.txt", classify, "", 1)]).zip(&references);
    for ((name, task, _, outputs), model) in all {
        let reference = Reference::of(name);
        let matrix = Matrix { columns: 8, values: reference.cells.clone() };
        let request = PredictRequest { model: model.clone(), input: Some(Input::Matrix(matrix.clone())) };
        let answer = client.predict(request).await.unwrap().into_inner();
        assert_eq!((answer.outputs, answer.errors.len()), (outputs, 0), "{name}");
        let (answers, other) = match task {
            Task::TabularRegression => (&answer.values, &answer.probabilities),
            _ => (&answer.probabilities, &answer.values),
        };
        assert!(other.is_empty(), "{name}");
        reference.check(answers, "predictions");
        let classes = if task == regress { 0 } else { outputs.max(2) };
        assert_eq!(answer.classes.len(), classes as usize, "{name}");

        let explain = |top_k| ExplainRequest {
            model: model.clone(),
            input: Some(explain_request::Input::Matrix(matrix.clone())),
            top_k,
        };
        let explained = client.explain(explain(0)).await;
        if name.ends_with(".onnx") && name != "sk_logistic.onnx" {
            let refused = explained.unwrap_err();
            assert_eq!((refused.code(), told(&refused).0.as_str()), (Code::FailedPrecondition, "NOT_EXPLAINABLE"));
            continue;
        }
        let explained = explained.unwrap().into_inner();
        assert_eq!(explained.features.len(), 8);
        assert_eq!(explained.explanations.len(), answer.margins.len(), "{name}");
        let mut shap = Vec::new();
        for (explanation, margin) in explained.explanations.iter().zip(&answer.margins) {
            let sum = explanation.base_value + explanation.contributions.iter().sum::<f32>();
            assert!((sum - margin).abs() <= 1e-5 * margin.abs().max(1.0), "{name}: {sum}, the margin is {margin}");
            assert_eq!(explanation.margin, *margin);
            assert!(explanation.contributions.is_sorted_by(|a, b| a.abs() >= b.abs()), "{name}");
            let mut by_column = [0.0; 9];
            by_column[8] = explanation.base_value;
            for (column, contribution) in explanation.features.iter().zip(&explanation.contributions) {
                by_column[*column as usize] = *contribution;
            }
            shap.extend(by_column);
        }
        reference.check(&shap, "shap");
        let best = client.explain(explain(2)).await.unwrap().into_inner();
        for (best, all) in best.explanations.iter().zip(&explained.explanations) {
            assert_eq!((&best.features[..], &best.contributions[..]), (&all.features[..2], &all.contributions[..2]));
        }
    }
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_infinite_cell_is_refused_by_row_and_column_and_a_missing_one_by_row() {
    let registry = Registry::start().await;
    let file = |name: &str| [("model.onnx", unpacked(&format!("trees/{name}.gz")))];
    registry.publish_files("logistic", Task::TabularClassification, &file("sk_logistic.onnx")).await;
    let (predict, _dir) = Predict::warm(&registry, &["logistic@champion"]).await;
    let mut client = predict.client();
    let mut values = vec![1.0; 24];
    values[8 + 3] = f32::INFINITY;
    let asked = |values| PredictRequest {
        model: "logistic@champion".to_owned(),
        input: Some(Input::Matrix(Matrix { columns: 8, values })),
    };
    let refused = client.predict(asked(values.clone())).await.unwrap_err();
    assert_eq!(told(&refused).1, ["matrix.values[11]"]);
    let problem = &verdict_chassis::status::fields(&refused)[0].problem;
    assert!(problem.contains("row 1, column `f3`"), "{problem}");
    // A linear model makes nothing of a row that misses a value; the others have their answers.
    values[8 + 3] = f32::NAN;
    let answer = client.predict(asked(values.clone())).await.unwrap().into_inner();
    assert!(answer.probabilities[1].is_nan() && answer.margins[1].is_nan());
    assert!(answer.probabilities[0].is_finite() && answer.probabilities[2].is_finite());
    let error = answer.errors[0].error.clone().unwrap();
    assert_eq!((answer.errors.len(), answer.errors[0].row, error.reason.as_str()), (1, 1, "NOT_FINITE"));
    let request = ExplainRequest {
        model: "logistic@champion".to_owned(),
        input: Some(explain_request::Input::Matrix(Matrix { columns: 8, values })),
        top_k: 1,
    };
    let explained = client.explain(request).await.unwrap().into_inner();
    let rows: Vec<_> = explained.explanations.iter().map(|explanation| explanation.row).collect();
    assert_eq!((rows, explained.errors[0].row), (vec![0, 2], 1));
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_does_not_fit_its_task_says_why() {
    let registry = Registry::start().await;
    let model = |name: &str| unpacked(&format!("trees/{name}.gz"));
    let policy = || std::fs::read(credit_risk().join("1/policy.json")).unwrap();
    let (classify, regress) = (Task::TabularClassification, Task::TabularRegression);
    let bad = [
        ("a", classify, vec![("model.json", model("xgb_poisson.json"))], "is no classifier (count:poisson)"),
        ("b", regress, vec![("model.txt", model("lgb_binary.txt"))], "is a classifier (binary sigmoid:1)"),
        ("c", classify, vec![("model.json", b"\x80\x04pickle".to_vec())], "neither XGBoost JSON or UBJSON"),
        ("d", classify, vec![("weights.bin", b"x".to_vec())], "needs one of model.json"),
        ("e", classify, vec![("model.json", model("xgb_multi.ubj")), ("policy.json", policy())], "policy.json: "),
    ];
    let mut references = Vec::new();
    for (name, task, files, _) in &bad {
        registry.publish_files(name, *task, files).await;
        references.push(format!("{name}@champion"));
    }
    let dir = tempfile::tempdir().unwrap();
    let references: Vec<&str> = references.iter().map(String::as_str).collect();
    let predict = Predict::start(config(dir.path(), &registry.url(), &references)).await;
    let all_failed = async || predict.served().await.iter().all(|one| one.state() == ServedModelState::Failed);
    tokio::time::timeout(PATIENCE, predict.wait("all are refused", all_failed)).await.unwrap();
    for (served, (name, _, _, expected)) in predict.served().await.iter().zip(&bad) {
        assert!(served.message.contains(expected), "{name}: {}", served.message);
    }
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn explanations_are_those_of_decisions() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let (predict, _dir) = Predict::warm(&registry, &[MODEL]).await;
    let features = applications().remove(0);
    let request = ExplainRequest {
        model: MODEL.to_owned(),
        input: Some(explain_request::Input::Rows(Rows { rows: vec![Row { features: features.clone() }] })),
        top_k: 0,
    };
    let explained = predict.client().explain(request).await.unwrap().into_inner();
    let decide = DecideRequest { model: MODEL.to_owned(), features, ..DecideRequest::default() };
    let decision = predict.decisions().decide(decide).await.unwrap().into_inner().decision.unwrap();
    assert_eq!(explained.explanations[0].margin, decision.margin);
    assert!(!decision.reasons.is_empty());
    for reason in decision.reasons {
        let column = explained.features.iter().position(|name| *name == reason.feature).unwrap() as u32;
        let place = explained.explanations[0].features.iter().position(|feature| *feature == column).unwrap();
        assert_eq!(explained.explanations[0].contributions[place], reason.contribution);
    }
    let too_much = ExplainRequest {
        model: MODEL.to_owned(),
        input: Some(explain_request::Input::Matrix(Matrix { columns: 20, values: vec![1.0; 20 * 300_000] })),
        top_k: 0,
    };
    assert_eq!(told(&predict.client().explain(too_much).await.unwrap_err()).1, ["input"]);
    predict.stop().await;
}
