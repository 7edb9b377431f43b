//! kill -9 at any moment: what was acknowledged is there, what was not can be sent again.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use verdict_api::rag::rag_service_client::RagServiceClient;
use verdict_api::rag::{
    Document, GetCollectionRequest, IngestDocumentsRequest, IngestState, SearchMode, SearchRequest,
};
use verdict_chassis::client::Channel;
use verdict_testkit::net::free_port;
use verdict_testkit::process::Child;

use crate::world::{COLLECTION, EMBEDDER, Models, PATIENCE, asking, channel, document, ingest, states};

async fn start(data: &Path, models: &Models, address: SocketAddr) -> (Child, RagServiceClient<Channel>) {
    let env = [
        ("RAG_LISTEN", address.to_string()),
        ("RAG_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
        ("RAG_DATA_DIR", data.display().to_string()),
        ("PREDICT_URL", models.url()),
        ("QDRANT_URL", String::new()),
    ];
    let mut child = Child::spawn(Path::new(env!("CARGO_BIN_EXE_rag")), &["serve"], env);
    child.wait_listening(address, PATIENCE).await;
    (child, RagServiceClient::new(channel(address)))
}

fn many() -> Vec<Document> {
    let text = |i: usize| {
        format!("Report number {i}. The turbine marked unit{i} ran for {i} hours.\n\n{}", "It held. ".repeat(150))
    };
    (0..120).map(|i| document(&format!("report-{i}"), "text/plain", &text(i))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_every_acknowledged_document_is_there_whole() {
    let models = Models::serve(&[EMBEDDER]).await;
    let data = tempfile::tempdir().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let (mut child, mut client) = start(data.path(), &models, address).await;

    let request = |document| IngestDocumentsRequest { collection: COLLECTION.to_owned(), document: Some(document) };
    let requests: Vec<_> = many().into_iter().map(request).collect();
    let mut reports = client.ingest_documents(futures::stream::iter(requests)).await.unwrap().into_inner();
    let mut acknowledged = Vec::new();
    while let Some(Ok(report)) = reports.next().await {
        assert_eq!(report.state(), IngestState::Indexed);
        acknowledged.push(report);
        if acknowledged.len() == 30 {
            child.kill();
        }
    }
    assert!((30..120).contains(&acknowledged.len()), "killed on the way: {}", acknowledged.len());
    drop(child);

    let (mut child, client) = start(data.path(), &models, address).await;
    for (i, report) in acknowledged.iter().enumerate() {
        let request = SearchRequest { mode: SearchMode::Sparse.into(), limit: 1, ..asking(&format!("unit{i}")) };
        let found = client.clone().search(request).await.unwrap().into_inner();
        let passage = found.hits[0].passage.as_ref().unwrap();
        assert_eq!((&passage.document_id, &passage.version), (&report.document_id, &report.version));
    }
    let again = ingest(client.clone(), many()).await.unwrap();
    let states = states(&again);
    let (done, rest) = states.split_at(acknowledged.len());
    assert!(done.iter().all(|state| *state == IngestState::Unchanged), "what was acknowledged is whole: {done:?}");
    assert!(!rest.contains(&IngestState::Failed));
    let request = GetCollectionRequest { collection: COLLECTION.to_owned() };
    let contents = client.clone().get_collection(request).await.unwrap().into_inner();
    let chunks: u32 = again.iter().map(|report| report.chunks).sum();
    assert_eq!((contents.documents, contents.chunks), (120, u64::from(chunks)), "and nothing is there twice");
    child.terminate(Duration::from_secs(20)).await;
}
