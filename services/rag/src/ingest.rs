//! Documents in: read, cut, embedded, stored; a few at a time at every step, answered in order.

mod group;
mod pending;

use std::sync::Arc;

use futures::FutureExt;
use futures::stream::{self, Stream, StreamExt};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use verdict_chassis::{context, status};

use crate::chunk::{Chunker, Length};
use crate::document::{Collection, Document, Passage};
use crate::error::{Error, Result};
use crate::index::{Holding, Index, Point, Points, Schema};
use crate::metrics;
use crate::models::{Embedder, Models};
use crate::parse::{MAX_REPEATED_BYTES, Unreadable, parse};
use crate::sparse::Sparse;
use crate::words::Words;

use self::group::group;
use self::pending::{Entered, Pending};

/// Documents read and cut ahead. What is held altogether, from reading to storing, [`Pending`] bounds by bytes.
const READ_AHEAD: usize = 8;
/// Most documents that are embedded and stored together.
const GROUP: usize = 16;
/// Passages from which on a group takes no further document.
const GROUP_PASSAGES: usize = 1024;
/// Groups being embedded at once, so that predict has work while another group is being stored.
const EMBEDDING: usize = 3;

/// What documents go through.
#[derive(Clone)]
pub(crate) struct Ingest {
    pub(crate) index: Arc<dyn Index>,
    pub(crate) models: Models,
    pub(crate) words: Arc<Words>,
    pub(crate) length: Length,
}

/// A document and where it is to go; or why it is not one.
pub(crate) type Submission = Result<(Collection, Document), Report>;

/// What became of a document.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Report {
    pub(crate) document_id: String,
    /// Empty where the document was not even read.
    pub(crate) version: String,
    pub(crate) fate: Fate,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fate {
    Indexed { chunks: u32 },
    Unchanged { chunks: u32 },
    Replaced { chunks: u32 },
    Failed { reason: &'static str, message: String },
}

/// What one stream of documents goes through: everything about the embedder is settled at its beginning.
#[derive(Clone)]
struct Batcher {
    ingest: Ingest,
    embedder: Embedder,
    chunker: Chunker,
}

/// A document after reading.
enum Read {
    /// Nothing is left to do for it.
    Reported(Report),
    Cut(Box<Cut>),
}

/// A document cut into passages.
struct Cut {
    collection: Collection,
    document_id: String,
    version: String,
    revision: String,
    passages: Vec<Passage>,
    /// What is embedded for each passage.
    inputs: Vec<String>,
    entered: Entered,
}

/// A document after embedding.
enum Ready {
    Reported(Report),
    Embedded { collection: Collection, version: String, points: Points, entered: Entered },
}

/// What is stored in one collection together.
struct Work {
    collection: Collection,
    /// Of each document, its place among the reports and its version.
    places: Vec<(usize, String)>,
    points: Vec<Points>,
    /// Leave when it is done.
    entered: Vec<Entered>,
}

/// Documents that go on together, and what ended the stream after them.
struct Group {
    documents: Vec<Ready>,
    end: Option<Status>,
}

impl Group {
    fn broken(error: &anyhow::Error) -> Self {
        Self { documents: Vec::new(), end: Some(status::internal(error)) }
    }
}

impl Ingest {
    /// Ingests a stream of documents and yields one report for each, in order, once its chunks are durable. What stops
    /// all further work, as an embedder that does not answer, ends the stream with its status.
    pub(crate) async fn run(
        self,
        documents: impl Stream<Item = Result<Submission, Status>> + Send + 'static,
    ) -> Result<impl Stream<Item = Result<Report, Status>> + Send + 'static> {
        let embedder = self.models.embedder().await?;
        let chunker = Chunker::new(embedder.tokenizer.clone(), self.length, embedder.max_length);
        let batcher = Batcher { ingest: self, embedder, chunker };
        let (reading, embedding, storing, settling) = (batcher.clone(), batcher.clone(), batcher.clone(), batcher);
        let touched = Arc::new(parking_lot::Mutex::new(Vec::<Collection>::new()));
        let to_settle = touched.clone();
        let (pending, length) = (Pending::new(), reading.chunker.length());

        let entered = documents.then(move |message| {
            let pending = pending.clone();
            async move {
                match message? {
                    Ok((collection, document)) => {
                        let entered = pending.enter(&collection, &document, length).await;
                        Ok::<_, Status>(Ok((collection, document, entered)))
                    }
                    Err(report) => Ok(Err(report)),
                }
            }
        });
        let read = entered
            .map(move |message| {
                let reading = reading.clone();
                async move {
                    match message? {
                        Ok((collection, document, entered)) => Ok(reading.read(collection, document, entered).await?),
                        Err(report) => Ok(Read::Reported(report)),
                    }
                }
            })
            .buffered(READ_AHEAD);
        let reports = group(read, GROUP, passages, GROUP_PASSAGES)
            .map(move |group| {
                // A task of its own: it goes on while this stream waits for the store.
                let embedding = embedding.clone();
                let task = AbortOnDropHandle::new(context::spawn(async move { embedding.embed(group).await }));
                task.map(|embedded| embedded.unwrap_or_else(|panicked| Group::broken(&panicked.into())))
            })
            .buffered(EMBEDDING)
            .then(move |group| {
                let (storing, touched) = (storing.clone(), touched.clone());
                async move { storing.store(group, &touched).await }
            })
            .flat_map(stream::iter)
            .inspect(|report| {
                if let Ok(report) = report {
                    report.count();
                }
            });
        let settle = stream::once(async move {
            let collections = std::mem::take(&mut *to_settle.lock());
            for collection in collections {
                if let Err(error) = settling.ingest.index.settle(&collection).await {
                    // All is stored and found; it is only not as tidy as it could be.
                    tracing::warn!(error = ?error, "could not tidy up collection `{collection}`");
                }
            }
        });
        Ok(reports.chain(settle.filter_map(|()| std::future::ready(None))))
    }
}

/// Counts the passages that are to be embedded.
fn passages(read: &Result<Read, Status>) -> usize {
    match read {
        Ok(Read::Cut(cut)) => cut.passages.len(),
        Ok(Read::Reported(_)) | Err(_) => 0,
    }
}

impl Batcher {
    async fn read(&self, collection: Collection, document: Document, entered: Entered) -> Result<Read> {
        let version = document.version();
        let revision = document.revision(&version, self.chunker.length());
        let id = document.id.clone();
        if let Some(schema) = self.ingest.index.schema(&collection).await? {
            self.must_match(&collection, &schema)?;
            if !entered.follows_another {
                let asked = [(id.clone(), revision.clone())];
                let held = self.ingest.index.holdings(&collection, &asked).await?;
                if let [Holding::Same { chunks }] = held[..] {
                    return Ok(Read::Reported(Report { document_id: id, version, fate: Fate::Unchanged { chunks } }));
                }
            }
        }
        let (chunker, name, digest) = (self.chunker.clone(), collection, version.clone());
        let cut = tokio::task::spawn_blocking(move || cut(&chunker, name, document, digest, revision, entered)).await;
        let failed = |reason, message| {
            Ok(Read::Reported(Report { document_id: id.clone(), version, fate: Fate::Failed { reason, message } }))
        };
        match cut {
            Ok(Ok(cut)) => Ok(Read::Cut(Box::new(cut))),
            Ok(Err(unreadable)) => failed(unreadable.reason(), unreadable.to_string()),
            Err(_) => failed("UNREADABLE", "the document could not be read".to_owned()),
        }
    }

    /// Embeds the passages of all documents together: predict fills its batches however small the documents are.
    async fn embed(&self, read: Vec<Result<Read, Status>>) -> Group {
        let mut documents = Vec::with_capacity(read.len());
        let mut cuts = Vec::new();
        let mut end = None;
        for read in read {
            match read {
                Ok(Read::Reported(report)) => documents.push(Some(Ready::Reported(report))),
                Ok(Read::Cut(mut cut)) => {
                    cuts.push((documents.len(), std::mem::take(&mut cut.inputs), cut));
                    documents.push(None);
                }
                Err(status) => {
                    end = Some(status);
                    break;
                }
            }
        }
        let inputs: Vec<String> = cuts.iter_mut().flat_map(|(_, inputs, _)| std::mem::take(inputs)).collect();
        let embedded = match inputs.is_empty() {
            true => Ok(Vec::new()),
            false => self.vectors(inputs).await,
        };
        match embedded {
            Ok(vectors) => {
                let mut vectors = vectors.into_iter();
                for (place, _, cut) in cuts {
                    let own = vectors.by_ref().take(cut.passages.len()).collect::<Result<Vec<_>, _>>();
                    documents[place] = Some(self.ready(*cut, own));
                }
            }
            Err(error) => {
                // What was reported before the first document that needed vectors still stands.
                documents.truncate(cuts.first().map_or(documents.len(), |(place, ..)| *place));
                end = Some(error.into());
            }
        }
        Group { documents: documents.into_iter().flatten().collect(), end }
    }

    async fn vectors(&self, inputs: Vec<String>) -> Result<Vec<Result<Vec<f32>, String>>> {
        let embedded = self.ingest.models.embed(inputs).await?;
        if embedded.digest == self.embedder.digest {
            return Ok(embedded.vectors);
        }
        let moved = "the embedding model was replaced while documents were being ingested; send the rest again";
        Err(Error::Busy { retry_after: std::time::Duration::from_secs(1), message: moved.to_owned() })
    }

    fn ready(&self, cut: Cut, vectors: Result<Vec<Vec<f32>>, String>) -> Ready {
        let Cut { collection, document_id, version, revision, passages, inputs: _, entered } = cut;
        match vectors {
            Ok(vectors) => {
                let point = |(passage, dense): (Passage, Vec<f32>)| {
                    let text = format!("{}\n{}\n{}", passage.title, passage.headings.join("\n"), passage.text);
                    Point { sparse: Sparse::of_passage(&self.ingest.words, &text), passage, dense }
                };
                let points = passages.into_iter().zip(vectors).map(point).collect();
                Ready::Embedded { collection, version, points: Points { document_id, revision, points }, entered }
            }
            Err(problem) => {
                let message = format!("a passage could not be embedded: {problem}");
                Ready::Reported(Report { document_id, version, fate: Fate::Failed { reason: "NOT_EMBEDDED", message } })
            }
        }
    }

    async fn store(
        &self,
        Group { documents, end }: Group,
        touched: &parking_lot::Mutex<Vec<Collection>>,
    ) -> Vec<Result<Report, Status>> {
        let mut reports: Vec<Option<Report>> = Vec::with_capacity(documents.len());
        let mut work: Vec<Work> = Vec::new();
        for document in documents {
            match document {
                Ready::Reported(report) => reports.push(Some(report)),
                Ready::Embedded { collection, version, points, entered } => {
                    let place = (reports.len(), version);
                    reports.push(None);
                    match work.iter_mut().find(|work| work.collection == collection) {
                        Some(work) => {
                            work.places.push(place);
                            work.points.push(points);
                            work.entered.push(entered);
                        }
                        None => work.push(Work {
                            collection,
                            places: vec![place],
                            points: vec![points],
                            entered: vec![entered],
                        }),
                    }
                }
            }
        }
        let mut failed = None;
        for Work { collection, places, points, entered } in work {
            let ids: Vec<_> = points.iter().map(|one| (one.document_id.clone(), one.points.len() as u32)).collect();
            match self.replace(&collection, points).await {
                Ok(before) => {
                    for (((place, version), (document_id, chunks)), before) in places.into_iter().zip(ids).zip(before) {
                        let fate = match before {
                            Holding::Nothing => Fate::Indexed { chunks },
                            Holding::Same { chunks } => Fate::Unchanged { chunks },
                            Holding::Other => Fate::Replaced { chunks },
                        };
                        reports[place] = Some(Report { document_id, version, fate });
                    }
                    let mut touched = touched.lock();
                    if !touched.contains(&collection) {
                        touched.push(collection);
                    }
                }
                Err(error) => failed = failed.or(Some(error.into())),
            }
            drop(entered);
        }
        // A document that was not stored ends the stream: what comes after it is not reported, and sent again it is
        // found unchanged if it was stored.
        let done = reports.iter().position(Option::is_none).unwrap_or(reports.len());
        reports.into_iter().take(done).flatten().map(Ok).chain(failed.or(end).map(Err)).collect()
    }

    async fn replace(&self, collection: &Collection, points: Vec<Points>) -> Result<Vec<Holding>> {
        let Embedder { digest, dimensions, .. } = &self.embedder;
        let schema = Schema { embedding_digest: digest.clone(), dimensions: *dimensions };
        let found = self.ingest.index.create(collection, &schema).await?;
        self.must_match(collection, &found)?;
        self.ingest.index.replace(collection, points).await
    }

    fn must_match(&self, collection: &Collection, schema: &Schema) -> Result<()> {
        if schema.embedding_digest == self.embedder.digest {
            return Ok(());
        }
        Err(Error::EmbeddingMismatch {
            collection: collection.clone(),
            stored: schema.embedding_digest.clone(),
            model: self.ingest.models.embedder_name().to_owned(),
            served: self.embedder.digest.clone(),
        })
    }
}

/// Reads a document and cuts it.
fn cut(
    chunker: &Chunker,
    collection: Collection,
    document: Document,
    version: String,
    revision: String,
    entered: Entered,
) -> Result<Cut, Unreadable> {
    let Document { id, content_type, content, title, uri, metadata } = document;
    let text = parse(&content_type, content)?;
    let title = match title.is_empty() {
        true => text.title.clone().unwrap_or_else(|| id.clone()),
        false => title,
    };
    let pieces = chunker.cut(&text);
    let labels: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    let headings: usize = pieces.iter().flat_map(|piece| &piece.headings).map(String::len).sum();
    let repeated = headings + pieces.len() * (title.len() + uri.len() + labels);
    if repeated > MAX_REPEATED_BYTES {
        return Err(Unreadable::RepeatsTooMuch(repeated));
    }
    let chunks = pieces.len() as u32;
    let passages: Vec<Passage> = pieces
        .into_iter()
        .zip(0..)
        .map(|(piece, chunk)| Passage {
            document_id: id.clone(),
            revision: revision.clone(),
            version: version.clone(),
            title: title.clone(),
            uri: uri.clone(),
            chunk,
            chunks,
            headings: piece.headings,
            text: text.text[piece.start..piece.end].to_owned(),
            start: piece.start as u64,
            end: piece.end as u64,
            metadata: metadata.clone(),
        })
        .collect();
    if passages.is_empty() {
        return Err(Unreadable::Empty);
    }
    let inputs =
        passages.iter().map(|passage| chunker.with_context(&passage.title, &passage.headings, &passage.text)).collect();
    Ok(Cut { collection, document_id: id, version, revision, passages, inputs, entered })
}

impl Report {
    fn count(&self) {
        let state = match &self.fate {
            Fate::Indexed { chunks } | Fate::Replaced { chunks } => {
                ::metrics::counter!(metrics::PASSAGES).increment(u64::from(*chunks));
                if matches!(self.fate, Fate::Indexed { .. }) { "INDEXED" } else { "REPLACED" }
            }
            Fate::Unchanged { .. } => "UNCHANGED",
            Fate::Failed { reason, .. } => {
                ::metrics::counter!(metrics::DOCUMENTS, "state" => "FAILED", "reason" => *reason).increment(1);
                return;
            }
        };
        ::metrics::counter!(metrics::DOCUMENTS, "state" => state, "reason" => "").increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::tests::letters;

    #[tokio::test]
    async fn a_document_that_repeats_too_much_is_not_taken_apart() {
        let chunker = Chunker::new(letters(), Length { tokens: 1, overlap: 0 }, 1000);
        let collection = Collection::new("a").unwrap();
        let try_with = async |bytes: usize| {
            let document = Document {
                id: "1".into(),
                content_type: "text/plain".into(),
                content: "a ".repeat(200).into_bytes(),
                title: String::new(),
                uri: String::new(),
                metadata: [("key".to_owned(), "x".repeat(bytes))].into(),
            };
            let entered = Pending::new().enter(&collection, &document, chunker.length()).await;
            cut(&chunker, collection.clone(), document, "v".into(), "r".into(), entered)
        };
        assert_eq!(try_with(10).await.unwrap().passages.len(), 200);
        assert_eq!(try_with(1 << 20).await.err().unwrap().reason(), "TOO_LARGE");
    }
}
