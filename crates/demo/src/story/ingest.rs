//! This project's own pages and the Cranfield abstracts, through the ingestion stream.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::json;
use verdict_api::rag::{
    Document, GetCollectionRequest, IngestDocumentsRequest, IngestState, rag_service_client::RagServiceClient,
};
use verdict_chassis::client;

use super::{carried, failed};
use crate::{
    Settings,
    tell::{self, Step},
};

/// Collection of this project's own pages.
pub(super) const DOCS: &str = "docs";
/// Collection of the Cranfield abstracts.
pub(super) const CRANFIELD: &str = "cranfield";

#[derive(Deserialize)]
struct Abstract {
    id: String,
    title: String,
    text: String,
}

/// Ingests both collections; a second run finds everything unchanged.
pub(super) async fn documents(settings: &Settings) -> Result<()> {
    let mut pages = Vec::new();
    markdown_below(&settings.docs, &mut pages)?;
    ensure!(!pages.is_empty(), "there is no .md file below {}", settings.docs.display());
    let pages = pages
        .into_iter()
        .map(|path| {
            let id = path.strip_prefix(&settings.docs).unwrap_or(&path).display().to_string();
            let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok(Document {
                uri: format!("docs/{id}"),
                id,
                content_type: "text/markdown".into(),
                content,
                ..Default::default()
            })
        })
        .collect::<Result<Vec<_>>>()?;
    ingest(settings, DOCS, pages).await?;

    let abstracts = carried(settings, "cranfield.jsonl.gz")?
        .lines()
        .take(settings.abstracts)
        .map(|line| {
            let entry: Abstract = serde_json::from_str(line)?;
            Ok(Document {
                id: entry.id,
                content_type: "text/plain".into(),
                content: entry.text.into_bytes(),
                title: entry.title,
                ..Default::default()
            })
        })
        // Some of the abstracts are empty in the collection itself.
        .filter(|document| !document.as_ref().is_ok_and(|document| document.content.trim_ascii().is_empty()))
        .collect::<Result<Vec<_>>>()
        .context("cranfield.jsonl.gz")?;
    ingest(settings, CRANFIELD, abstracts).await
}

async fn ingest(settings: &Settings, collection: &str, documents: Vec<Document>) -> Result<()> {
    let mut rag = RagServiceClient::new(client::connect(&format!("http://{}", settings.rag))?);
    let total = documents.len();
    let step = Step::begin(format!("Ingest {total} documents into `{collection}`: parse, chunk, embed, index"));
    tell::grpcurl(
        settings.rag,
        "verdict.rag.v1.RagService/IngestDocuments",
        &json!({"collection": collection, "document": {"id": "hello", "content_type": "text/plain", "content": "SGVsbG8="}}),
    );
    let bar = ProgressBar::new(total as u64).with_style(
        ProgressStyle::with_template("   {bar:40} {pos}/{len} documents, {per_sec}, {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let requests: Vec<_> = documents
        .into_iter()
        .map(|document| IngestDocumentsRequest { collection: collection.to_owned(), document: Some(document) })
        .collect();
    let mut results = rag
        .ingest_documents(futures::stream::iter(requests))
        .await
        .map_err(|status| failed("IngestDocuments", status))?
        .into_inner();
    let mut states = [0_usize; 5];
    while let Some(result) = results.next().await {
        let result = result.map_err(|status| failed("IngestDocuments", status))?;
        bar.inc(1);
        states[(result.state as usize).min(4)] += 1;
        if result.state() == IngestState::Failed {
            bar.suspend(|| tell::detail(format!("{}: {} {}", result.document_id, result.reason, result.message)));
        }
    }
    bar.finish_and_clear();
    let [_, indexed, unchanged, replaced, failures] = states;
    ensure!(indexed + unchanged + replaced + failures == total, "not every document was answered");
    ensure!(failures == 0, "{failures} documents failed");
    let request = GetCollectionRequest { collection: collection.to_owned() };
    let held = rag.get_collection(request).await.map_err(|status| failed("GetCollection", status))?.into_inner();
    step.end(format!(
        "{indexed} indexed, {unchanged} unchanged, {replaced} replaced; `{collection}` holds {} documents in {} chunks",
        held.documents, held.chunks
    ));
    Ok(())
}

fn markdown_below(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .map(|entry| entry.path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            markdown_below(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    Ok(())
}
