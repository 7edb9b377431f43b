//! Uploads that are refused while they are sent.

use futures::StreamExt;
use verdict_api::registry::upload_artifact_request::Part;
use verdict_api::registry::{Artifact, UploadArtifactRequest};
use verdict_chassis::status;

use crate::world::{World, artifact, parts};

const UPLOADS: usize = 200;

/// Whoever has much more to send when an upload is refused is told why, every time.
async fn refusals_arrive_however_much_is_being_sent(world: &World) {
    world.model("m").await;
    world.ready("m", &[("a", b"1")]).await;
    world.version("m").await;
    let short = vec![7; 3 << 20];
    let upload = async |version: i64, said: Artifact, wanted: &str| {
        let header = parts("m", version, said, &[]);
        let chunk = UploadArtifactRequest { part: Some(Part::Chunk(vec![7; 1 << 20])), crc32c: None };
        let body = futures::stream::iter(header).chain(futures::stream::repeat(chunk).take(32));
        let refused = world.client.clone().upload_artifact(body).await;
        let status = refused.unwrap_err();
        assert_eq!(status::reason(&status).as_deref(), Some(wanted), "{status:?}");
    };
    futures::stream::iter(0..UPLOADS)
        .for_each_concurrent(4, async |index| match index % 2 {
            0 => upload(1, artifact(&format!("{index}"), &[]), "VERSION_IMMUTABLE").await,
            _ => upload(2, artifact(&format!("{index}"), &short), "SIZE_MISMATCH").await,
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded() {
    let world = World::embedded().await;
    refusals_arrive_however_much_is_being_sent(&world).await;
    world.stop().await;
}

mod live {
    use super::World;

    #[tokio::test(flavor = "multi_thread")]
    async fn production() {
        let world = World::production().await;
        super::refusals_arrive_however_much_is_being_sent(&world).await;
        world.stop().await;
    }
}
