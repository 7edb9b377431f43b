//! Settings kept in AWS Secrets Manager: read at the start, read again when they were rotated.

mod live {
    use std::path::Path;
    use std::time::Duration;

    use serde_json::{Value, json};
    use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
    use tempfile::TempDir;
    use tonic::Code;
    use url::Url;
    use uuid::Uuid;
    use verdict_api::registry::{CreateModelRequest, ListModelsRequest};
    use verdict_chassis::client;
    use verdict_testkit::process::Child;
    use verdict_testkit::{net, postgres, secrets_manager};

    use crate::world::{Client, PATIENCE};

    /// A role that owns the database of `url`, as the rotation would change its password.
    struct Role {
        admin: PgConnection,
        url: Url,
        name: String,
    }

    impl Role {
        async fn owner_of(url: &str) -> Self {
            let (mut admin, url) = (PgConnection::connect(url).await.unwrap(), Url::parse(url).unwrap());
            let name = format!("rotated_{}", Uuid::new_v4().simple());
            let database = url.path().trim_start_matches('/').to_owned();
            for statement in [format!("CREATE ROLE {name} LOGIN"), format!("ALTER DATABASE {database} OWNER TO {name}")]
            {
                admin.execute(AssertSqlSafe(statement)).await.unwrap();
            }
            Self { admin, url, name }
        }

        /// Gives it this password, and ends its connections, so that new ones are needed.
        async fn change(&mut self, password: &str) {
            let change = format!("ALTER ROLE {} PASSWORD '{password}'", self.name);
            self.admin.execute(AssertSqlSafe(change)).await.unwrap();
            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1";
            sqlx::query(end).bind(&self.name).execute(&mut self.admin).await.unwrap();
        }

        /// As the rotation function keeps it.
        fn secret(&self, password: &str) -> Value {
            json!({
                "engine": "postgres", "host": self.url.host_str(), "port": self.url.port(), "username": self.name,
                "password": password, "dbname": self.url.path().trim_start_matches('/'),
            })
        }
    }

    fn start(data: &TempDir, listen: std::net::SocketAddr, secret: &str) -> Child {
        let mut env = vec![
            ("MODEL_REGISTRY_LISTEN", listen.to_string()),
            ("MODEL_REGISTRY_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
            ("MODEL_REGISTRY_MLFLOW_LISTEN", "none".to_owned()),
            ("MODEL_REGISTRY_DATA_DIR", data.path().display().to_string()),
            ("DATABASE_URL", format!("secretsmanager://{secret}#url?sslmode=disable")),
            ("SECRETS_REFRESH", "200ms".to_owned()),
        ];
        env.extend(secrets_manager::env());
        Child::spawn(Path::new(env!("CARGO_BIN_EXE_model-registry")), &["serve"], env)
    }

    #[tokio::test]
    async fn a_rotated_password_is_used_without_a_restart() {
        let mut role = Role::owner_of(&postgres::database().await).await;
        role.change("first").await;
        let secret = format!("registry-{}", Uuid::new_v4());
        secrets_manager::create(&secret, &role.secret("first")).await;

        let (data, listen) = (TempDir::new().unwrap(), std::net::SocketAddr::from(([127, 0, 0, 1], net::free_port())));
        let mut child = start(&data, listen, &secret);
        child.wait_listening(listen, PATIENCE).await;
        let mut client = Client::new(client::connect(&format!("http://{listen}")).unwrap());
        let model = |name: &str| CreateModelRequest { name: name.to_owned(), ..CreateModelRequest::default() };
        client.create_model(model("before")).await.unwrap();

        secrets_manager::put(&secret, &role.secret("second")).await;
        role.change("second").await;
        // Calls that meet a connection which was just ended fail; those after them need new ones.
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let listed = loop {
            let answer = match client.create_model(model("after")).await {
                Err(status) if status.code() != Code::AlreadyExists => Err(status),
                _ => client.list_models(ListModelsRequest::default()).await,
            };
            match answer {
                Ok(listed) => break listed.into_inner(),
                Err(status) => assert!(tokio::time::Instant::now() < deadline, "{status}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert_eq!(listed.models.len(), 2);
    }

    #[tokio::test]
    async fn a_secret_that_is_not_there_ends_the_start_by_its_name_and_the_setting() {
        let (data, listen) = (TempDir::new().unwrap(), std::net::SocketAddr::from(([127, 0, 0, 1], net::free_port())));
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_model-registry"));
        command.arg("serve").env("DATABASE_URL", "secretsmanager://no-such-secret#url");
        command.env("MODEL_REGISTRY_LISTEN", listen.to_string()).env("MODEL_REGISTRY_DATA_DIR", data.path());
        let output = command.envs(secrets_manager::env()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("DATABASE_URL") && said.contains("no-such-secret"), "{said}");
    }
}
