//! Databases on the PostgreSQL server that `make test` starts.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

/// Makes an empty database on the server of `TEST_POSTGRES_URL` and returns its URL.
///
/// It stays until the server's data directory goes.
pub async fn database() -> String {
    let server = crate::required("TEST_POSTGRES_URL");
    let name = format!("test_{}", Uuid::new_v4().simple());
    let mut connection = PgConnection::connect(&server)
        .await
        .unwrap_or_else(|error| panic!("can't connect to the server of TEST_POSTGRES_URL: {error}"));
    let create = AssertSqlSafe(format!("CREATE DATABASE {name}"));
    connection.execute(create).await.unwrap_or_else(|error| panic!("can't create database {name}: {error}"));
    connection.close().await.expect("the connection closes");
    let mut url = url::Url::parse(&server).expect("TEST_POSTGRES_URL is a URL");
    url.set_path(&name);
    url.into()
}

#[cfg(test)]
mod live {
    use super::*;

    #[tokio::test]
    async fn every_database_is_new_and_empty() {
        let (one, two) = (database().await, database().await);
        assert_ne!(one, two);
        let mut connection = PgConnection::connect(&one).await.unwrap();
        let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(tables, 0);
    }
}
