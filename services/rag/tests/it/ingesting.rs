//! Documents in: what is found afterwards, what is done twice, what is refused.

use tonic::Code;
use verdict_api::rag::{
    DeleteDocumentRequest, Document, GetCollectionRequest, IngestState, Passage, SearchMode, SearchResponse,
};
use verdict_chassis::status;

use crate::world::{
    COLLECTION, EMBEDDER, LOANS, Models, PENICILLIN, RERANKER, Rag, asking, document, ingest, library, states,
};

fn best(response: SearchResponse) -> Passage {
    response.hits.into_iter().next().expect("something is found").passage.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn text_markdown_and_html_are_found_with_the_way_back_to_the_document() {
    let models = Models::serve(&[EMBEDDER]).await;
    let rag = Rag::start(&models).await;
    let reports = rag.ingest(library()).await;
    assert_eq!(states(&reports), [IngestState::Indexed; 3]);
    assert!(reports.iter().all(|report| report.chunks >= 1 && report.version.starts_with("sha256:")));

    for mode in [SearchMode::Dense, SearchMode::Sparse, SearchMode::Hybrid] {
        let passage = best(rag.search("Who discovered penicillin?", mode).await);
        assert_eq!(passage.document_id, "penicillin", "{mode:?}");
        assert_eq!(passage.title, "penicillin", "a text without a title goes by its id");
        assert_eq!(&PENICILLIN[passage.start as usize..passage.end as usize], passage.text);
        assert_eq!(passage.uri, "https://example.org/penicillin");

        let passage = best(rag.search("how long may a review take", mode).await);
        assert_eq!((passage.document_id.as_str(), passage.title.as_str()), ("loans", "Loan handbook"), "{mode:?}");
        assert_eq!(&LOANS[passage.start as usize..passage.end as usize], passage.text);
        assert_eq!(passage.headings[0], "Loan handbook");

        let passage = best(rag.search("tonnes of steel in the Forth Bridge", mode).await);
        assert_eq!((passage.document_id.as_str(), passage.title.as_str()), ("bridge", "The Forth Bridge"), "{mode:?}");
        assert!(passage.text.contains("53,000 tonnes of steel & 6.5 million rivets"), "{}", passage.text);
        assert!(!passage.text.contains("secret") && !passage.text.contains("color"), "{}", passage.text);
    }
    rag.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_document_is_left_alone_another_content_replaces_it_and_deletion_takes_it_away() {
    let models = Models::serve(&[EMBEDDER]).await;
    let rag = Rag::start(&models).await;
    rag.ingest(library()).await;
    let count = async || {
        let request = GetCollectionRequest { collection: COLLECTION.to_owned() };
        let contents = rag.client.clone().get_collection(request).await.unwrap().into_inner();
        assert_eq!(contents.dimensions, 384);
        assert!(contents.embedding_digest.starts_with("sha256:"));
        (contents.documents, contents.chunks)
    };
    let before = count().await;
    assert_eq!(before.0, 3);
    let again = rag.ingest(library()).await;
    assert_eq!(states(&again), [IngestState::Unchanged; 3]);
    assert_eq!(count().await, before);

    let changed = document("penicillin", "text/plain", "Penicillin was first made in quantity in Peoria, Illinois.");
    let reports = rag.ingest(vec![changed]).await;
    assert_eq!(states(&reports), [IngestState::Replaced]);
    assert_eq!(count().await.0, 3);
    let passages = rag.search("penicillin Fleming", SearchMode::Sparse).await;
    assert!(passages.hits.iter().all(|hit| !hit.passage.as_ref().unwrap().text.contains("Fleming")));
    assert_eq!(best(passages).version, reports[0].version);

    let twice = vec![document("note", "text/plain", "first"), document("note", "text/plain", "second")];
    assert_eq!(states(&rag.ingest(twice).await), [IngestState::Indexed, IngestState::Replaced]);
    assert_eq!(best(rag.search("second", SearchMode::Sparse).await).text, "second");

    let delete = |id: &str| DeleteDocumentRequest { collection: COLLECTION.to_owned(), document_id: id.to_owned() };
    let deleted = rag.client.clone().delete_document(delete("penicillin")).await.unwrap().into_inner();
    assert!(deleted.chunks == 1 && deleted.time.is_some());
    assert!(rag.search("penicillin", SearchMode::Sparse).await.hits.is_empty());
    let gone = rag.client.clone().delete_document(delete("penicillin")).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    assert_eq!(status::reason(&gone).as_deref(), Some("DOCUMENT_NOT_FOUND"));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_one_document_several_times_in_a_stream_the_last_one_stays() {
    let models = Models::serve(&[EMBEDDER]).await;
    let rag = Rag::start(&models).await;
    let first = || document("note", "text/plain", "The kettle is red.");
    let second = || document("note", "text/plain", "The kettle is blue.");
    rag.ingest(vec![first()]).await;
    let reports = rag.ingest(vec![second(), first()]).await;
    assert_eq!(states(&reports), [IngestState::Replaced; 2]);
    let found = rag.search("kettle", SearchMode::Sparse).await;
    assert_eq!(found.hits.len(), 1);
    assert_eq!(best(found).text, "The kettle is red.");
    let reports = rag.ingest(vec![first(), second(), second(), first()]).await;
    assert_eq!(reports[0].state(), IngestState::Unchanged);
    assert_eq!(best(rag.search("kettle", SearchMode::Sparse).await).text, "The kettle is red.");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_ingested_is_reported_with_its_reason_and_the_others_go_on() {
    let models = Models::serve(&[EMBEDDER]).await;
    let rag = Rag::start(&models).await;
    let reports = rag
        .ingest(vec![
            document("pdf", "application/pdf", "%PDF-1.7"),
            document("good", "text/plain", "A good document about nothing in particular."),
            document("empty", "text/markdown", " \n\n"),
            Document { content: vec![b'a', 0xc3, 0x28], ..document("binary", "text/plain", "") },
            document("", "text/plain", "no id"),
            document("latin", "text/html; charset=iso-8859-1", "<p>x"),
            document("also-good", "text/html", "<p>Another one"),
        ])
        .await;
    let reasons: Vec<_> = reports.iter().map(|report| report.reason.as_str()).collect();
    assert_eq!(
        reasons,
        ["UNSUPPORTED_TYPE", "", "EMPTY_DOCUMENT", "NOT_UTF8", "INVALID_REQUEST", "UNSUPPORTED_CHARSET", ""]
    );
    for (report, reason) in reports.iter().zip(reasons) {
        let expected = if reason.is_empty() { IngestState::Indexed } else { IngestState::Failed };
        assert_eq!(report.state(), expected);
    }
    let ids: Vec<_> = reports.iter().map(|report| report.document_id.as_str()).collect();
    assert_eq!(ids, ["pdf", "good", "empty", "binary", "", "latin", "also-good"]);
    assert!(reports[0].message.contains("application/pdf") && reports[0].message.contains("text/markdown"));
    assert!(reports[4].message.contains("`document.id`"), "{}", reports[4].message);
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_of_two_embedding_models_never_meet() {
    let models = Models::serve(&[EMBEDDER]).await;
    let rag = Rag::start(&models).await;
    rag.ingest(library()).await;
    models.replace(("embedder", EMBEDDER.1, "bge-small-en-v1.5")).await;

    let refused = rag.client.clone().search(asking("penicillin")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(status::reason(&refused).as_deref(), Some("EMBEDDING_MISMATCH"));
    assert!(refused.message().contains("embedder@champion") && refused.message().contains(COLLECTION));
    let refused = ingest(rag.client.clone(), vec![document("new", "text/plain", "new")]).await.unwrap_err();
    assert_eq!(status::reason(&refused).as_deref(), Some("EMBEDDING_MISMATCH"));
    assert!(!rag.search("penicillin", SearchMode::Sparse).await.hits.is_empty(), "words need no model");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_not_served_is_named() {
    let models = Models::serve(&[RERANKER]).await;
    let rag = Rag::start(&models).await;
    let refused = ingest(rag.client.clone(), library()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(status::reason(&refused).as_deref(), Some("MODEL_NOT_SERVED"));
    assert!(refused.message().contains("embedder@champion"), "{}", refused.message());
}
