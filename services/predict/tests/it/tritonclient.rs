//! The ordinary `tritonclient` against predict: `tests/clients/triton.py` says what must hold.

mod live {
    use std::{path::Path, process::Command};

    use verdict_api::registry::Task;

    use crate::world::{Predict, Registry};

    #[tokio::test(flavor = "multi_thread")]
    async fn tritonclient_works_unchanged() {
        let packages = std::env::var("TEST_TRITONCLIENT")
            .expect("TEST_TRITONCLIENT names no packages: run `make test`, which installs them");
        let registry = Registry::start().await;
        registry.publish_credit_risk(1, Some("champion")).await;
        registry.publish_credit_risk(2, Some("challenger")).await;
        registry.publish_text("all-MiniLM-L6-v2", Task::TextEmbedding).await;
        let models = ["credit-risk@champion", "all-MiniLM-L6-v2@champion"];
        let (predict, _dir) = Predict::warm(&registry, &models).await;

        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/triton.py");
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/inference/tests/golden");
        let mut command = Command::new("python3");
        command.arg(script).arg(predict.address().to_string()).arg(golden).env("PYTHONPATH", packages);
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}\n{error}");
        assert!(said.contains("all held with tritonclient"), "{said}");
        predict.stop().await;
    }
}
