//! The S3 server that `make test` starts.

use uuid::Uuid;

/// Where a test may put objects.
#[derive(Clone, Debug)]
pub struct Target {
    /// URL of the server.
    pub endpoint: String,
    /// Key of a user who may read and write the bucket.
    pub access_key: String,
    /// That user's secret.
    pub secret_key: String,
    /// A bucket that exists.
    pub bucket: String,
    /// A prefix no other test uses, without slashes.
    pub prefix: String,
}

impl Target {
    /// Reads `TEST_S3_ENDPOINT`, `TEST_S3_ACCESS_KEY`, `TEST_S3_SECRET_KEY` and `TEST_S3_BUCKET`, and makes a new prefix.
    pub fn from_env() -> Self {
        Self {
            endpoint: crate::required("TEST_S3_ENDPOINT"),
            access_key: crate::required("TEST_S3_ACCESS_KEY"),
            secret_key: crate::required("TEST_S3_SECRET_KEY"),
            bucket: crate::required("TEST_S3_BUCKET"),
            prefix: format!("test-{}", Uuid::new_v4().simple()),
        }
    }

    /// Returns the place as an artifact store is told it: `s3://bucket/prefix`.
    pub fn url(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix)
    }

    /// Returns the standard variables a process needs to reach it.
    pub fn env(&self) -> [(&'static str, String); 4] {
        [
            ("AWS_ENDPOINT_URL_S3", self.endpoint.clone()),
            ("AWS_ACCESS_KEY_ID", self.access_key.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.secret_key.clone()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ]
    }
}
