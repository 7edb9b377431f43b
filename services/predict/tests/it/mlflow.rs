//! What the ordinary `mlflow` client registers is served: no task, no signature but those of its `MLmodel`.

mod live {
    use std::{net::SocketAddr, path::Path, process::Command};

    use verdict_api::predict::{
        Matrix, PredictRequest, Row, Rows, ServedModel, Value, predict_request::Input, value::Kind,
    };
    use verdict_testkit::net::free_port;

    use crate::world::{Predict, Registry, floats, number};

    #[tokio::test(flavor = "multi_thread")]
    async fn models_of_the_mlflow_client_are_served_as_they_are() {
        let clients = std::env::var("TEST_MLFLOW_CLIENTS").unwrap_or_default();
        let packages = clients.split_whitespace().find_map(|client| client.strip_prefix("3.18="));
        let packages =
            packages.expect("TEST_MLFLOW_CLIENTS names no such client: run `make test`, which installs them");
        let mlflow = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let registry = Registry::start_with_mlflow(mlflow).await;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/mlflow_models.py");
        let mut command = Command::new("python3");
        command.arg(script).arg(format!("http://{mlflow}")).env("PYTHONPATH", packages);
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        let said = String::from_utf8(output.stdout).unwrap();
        let told: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();

        let models = ["approves@champion", "amounts@champion"];
        let (predict, _dir) = Predict::warm(&registry, &models).await;
        for model in models {
            let told = &told[model.split('@').next().unwrap()];
            let rows: Vec<Vec<f32>> = told["rows"].as_array().unwrap().iter().map(floats).collect();
            let expected = floats(&told["answers"]);
            let names: Vec<&str> =
                told["columns"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
            let matrix = Input::Matrix(Matrix { columns: 3, values: rows.concat() });
            let named = rows.iter().map(|row| Row {
                features: names
                    .iter()
                    .zip(row)
                    .map(|(name, cell)| ((*name).to_owned(), cell_of(name, *cell)))
                    .collect(),
            });
            let named = Input::Rows(Rows { rows: named.collect() });
            for input in [matrix, named] {
                let request = PredictRequest { model: model.to_owned(), input: Some(input) };
                let answer = predict.client().predict(request).await.unwrap().into_inner();
                let answers = if model.starts_with("approves") { &answer.probabilities } else { &answer.values };
                assert_eq!(answers.len(), expected.len(), "{model}");
                for (answer, expected) in answers.iter().zip(&expected) {
                    assert!(
                        (answer - expected).abs() <= 1e-5 * expected.abs().max(1.0),
                        "{model}: {answer}, {expected}"
                    );
                }
            }
        }

        // What cannot be served says so, and what to do.
        let dir = tempfile::tempdir().unwrap();
        let other = Predict::start(crate::world::config(dir.path(), &registry.url(), &["pickled@champion"])).await;
        let problem = |model: &ServedModel| {
            model.message.contains("supported: xgboost, lightgbm, onnx (log other models as ONNX)")
        };
        other.wait("the pickle is refused", async || other.served().await.iter().any(problem)).await;
        other.stop().await;
        predict.stop().await;
    }

    fn cell_of(name: &str, cell: f32) -> Value {
        if name == "owns home" { Value { kind: Some(Kind::Boolean(cell != 0.0)) } } else { number(f64::from(cell)) }
    }
}
