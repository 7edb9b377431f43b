//! Uploads that are refused while they are sent.

use futures::StreamExt;
use tonic::Code;
use verdict_api::registry::UploadArtifactRequest;
use verdict_api::registry::upload_artifact_request::Part;

use crate::world::{World, artifact, parts, reason};

/// Whoever has much to send after a header that is refused is told why, every time.
#[tokio::test(flavor = "multi_thread")]
async fn the_refusal_of_an_upload_arrives_however_much_is_being_sent() {
    let world = World::embedded().await;
    world.model("m").await;
    world.ready("m", &[("a", b"1")]).await;
    let header = parts("m", 1, artifact("b", &[]), &[]);
    let upload = async || {
        let chunk = UploadArtifactRequest { part: Some(Part::Chunk(vec![7; 1 << 20])) };
        let body = futures::stream::iter(header.clone()).chain(futures::stream::repeat(chunk).take(32));
        let refused = world.client.clone().upload_artifact(body).await;
        assert_eq!(refused.as_ref().unwrap_err().code(), Code::FailedPrecondition, "{refused:?}");
        assert_eq!(reason(refused), "VERSION_IMMUTABLE");
    };
    futures::stream::iter(0..200).for_each_concurrent(4, |_| upload()).await;
    world.stop().await;
}
