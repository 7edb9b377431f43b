//! The ordinary `mlflow` client, in three versions, against the registry: `tests/clients/drive.py` says what must hold.

mod live {
    use std::path::Path;
    use std::process::Command;

    use crate::world::World;

    /// Drives with the client whose version begins with `version`; what it says is printed where it fails.
    async fn drive(world: World, version: &str) {
        let clients = std::env::var("TEST_MLFLOW_CLIENTS").unwrap_or_default();
        let packages = clients.split_whitespace().find_map(|client| client.strip_prefix(&format!("{version}=")));
        let packages =
            packages.expect("TEST_MLFLOW_CLIENTS names no such client: run `make test`, which installs them");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/drive.py");
        let mut command = Command::new("python3");
        command.arg(script).arg(format!("http://{}", world.mlflow)).env("PYTHONPATH", packages);
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}\n{error}");
        assert!(said.contains(&format!("all held with mlflow {version}")), "{said}");
        world.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn mlflow_2_22_works_unchanged() {
        drive(World::embedded().await, "2.22").await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn mlflow_3_6_works_unchanged() {
        drive(World::embedded().await, "3.6").await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn mlflow_3_18_works_unchanged() {
        drive(World::embedded().await, "3.18").await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn mlflow_3_6_works_unchanged_on_postgres_and_s3() {
        drive(World::production().await, "3.6").await;
    }
}
