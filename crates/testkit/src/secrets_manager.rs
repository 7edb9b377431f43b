//! Secrets in the AWS Secrets Manager that `make test` starts: moto, which speaks its protocol.

use std::net::SocketAddr;

use serde_json::{Value, json};
use url::Url;

use crate::net;

/// The variables by which the AWS SDK finds it.
pub fn env() -> Vec<(&'static str, String)> {
    let endpoint = crate::required("TEST_SECRETS_MANAGER_ENDPOINT");
    let fixed = [("AWS_REGION", "us-east-1"), ("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")];
    let fixed = fixed.map(|(name, value)| (name, value.to_owned()));
    [("AWS_ENDPOINT_URL_SECRETS_MANAGER", endpoint)].into_iter().chain(fixed).collect()
}

/// Makes the secret `name`, a JSON object.
pub async fn create(name: &str, value: &Value) {
    call("CreateSecret", &json!({"Name": name, "SecretString": value.to_string()})).await;
}

/// Gives the secret `name` a new current value.
pub async fn put(name: &str, value: &Value) {
    call("PutSecretValue", &json!({"SecretId": name, "SecretString": value.to_string()})).await;
}

async fn call(action: &str, request: &Value) {
    let endpoint = Url::parse(&crate::required("TEST_SECRETS_MANAGER_ENDPOINT")).expect("an endpoint is a URL");
    let host = endpoint.host_str().expect("an endpoint has a host");
    let address = SocketAddr::new(host.parse().expect("an address"), endpoint.port().expect("an endpoint has a port"));
    let target = format!("secretsmanager.{action}");
    let headers = [
        ("Content-Type", "application/x-amz-json-1.1"),
        ("X-Amz-Target", target.as_str()),
        (
            "Authorization",
            "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/secretsmanager/aws4_request, Signature=0",
        ),
    ];
    let body = request.to_string();
    let (status, answer) =
        net::send_with(address, "POST", "/", &headers, body.as_bytes()).await.expect("Secrets Manager answers");
    assert_eq!(status, 200, "{action}: {}", String::from_utf8_lossy(&answer));
}
