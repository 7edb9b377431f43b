//! What may stand in an archive and what may not, from bytes that are right, wrong, cut and shuffled.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use super::export::Export;
use super::tar::{END, header, padding};
use super::{Arrival, import};
use crate::artifacts::{ArtifactStore, Body, Kept};
use crate::error::{Error, Result};
use crate::model::{Artifact, Micros, Origin, Stage, Task, Version, digest};
use crate::names::{ArtifactPath, ModelName, Sha256Hex, VersionId};

/// Keeps bytes in memory.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<String, Bytes>>);

#[async_trait]
impl ArtifactStore for Memory {
    async fn keep(&self, artifact: &Artifact, body: Body<'_>) -> Result<()> {
        let pieces: Vec<Bytes> = body.try_collect().await?;
        self.0.lock().insert(artifact.sha256.to_string(), pieces.concat().into());
        Ok(())
    }

    async fn open(&self, artifact: &Artifact, offset: u64) -> Result<Body<'static>> {
        let bytes = self.0.lock()[artifact.sha256.as_str()].slice(usize::try_from(offset).unwrap()..);
        Ok(stream::iter([Ok(bytes)]).boxed())
    }

    fn list(&self) -> BoxStream<'static, Result<Kept>> {
        stream::empty().boxed()
    }

    async fn remove(&self, _: &[Sha256Hex], _: Instant) -> Result<()> {
        Ok(())
    }

    async fn sweep(&self, _: Duration) -> Result<()> {
        Ok(())
    }
}

fn sha256(bytes: &[u8]) -> Sha256Hex {
    Sha256Hex::of(Sha256::new_with_prefix(bytes))
}

const FILES: [(&str, &[u8]); 4] =
    [("a/config.json", b"{}"), ("b.safetensors", &[7; 3000]), ("copy.json", b"{}"), ("empty", b"")];

fn version() -> Version {
    let artifact = |(path, bytes): (&str, &[u8])| Artifact {
        path: ArtifactPath::parse("path", path).unwrap(),
        size: bytes.len() as u64,
        sha256: sha256(bytes),
    };
    let artifacts: Vec<_> = FILES.into_iter().map(artifact).collect();
    Version {
        id: VersionId { model: ModelName::parse("model", "fraud").unwrap(), number: 3 },
        description: "größer".to_owned(),
        task: Task::Custom,
        signature: None,
        parameters: BTreeMap::from([("pooling".to_owned(), "cls".to_owned())]),
        tags: BTreeMap::from([("team".to_owned(), "cards".to_owned())]),
        digest: Some(digest(&artifacts)),
        artifacts,
        aliases: vec!["champion".to_owned()],
        origin: Origin { source: "runs:/1/model".to_owned(), run: "1".to_owned(), ..Origin::default() },
        author: String::new(),
        stage: Stage::None,
        create_time: Micros(1_700_000_000_123_456),
        update_time: Micros(1_800_000_000_000_000),
        revision: 9,
    }
}

/// The version as an archive, in one piece.
async fn archive() -> (String, Vec<u8>) {
    let store = Memory::default();
    for (_, bytes) in FILES {
        store.0.lock().insert(sha256(bytes).to_string(), Bytes::from_static(bytes));
    }
    let export = Export::new(&version(), None).unwrap();
    let (digest, size) = (export.digest.clone(), export.size);
    let pieces: Vec<Bytes> = export.bytes(Arc::new(store)).try_collect().await.unwrap();
    let bytes = pieces.concat();
    assert_eq!(bytes.len() as u64, size);
    (digest, bytes)
}

async fn receive(bytes: &[u8], piece: usize, store: &Memory) -> Result<(Arrival, String)> {
    let pieces: Vec<_> = bytes.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    import::receive(stream::iter(pieces).boxed(), &std::env::temp_dir(), store, None).await
}

/// The problem of a refused archive.
async fn problem(bytes: &[u8]) -> String {
    receive(bytes, 4096, &Memory::default()).await.unwrap_err().to_string()
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

/// The entries of an archive, each with header, content and padding.
fn entries(archive: &[u8]) -> Vec<Vec<u8>> {
    let (mut entries, mut rest) = (Vec::new(), &archive[..archive.len() - END.len()]);
    while !rest.is_empty() {
        let size = Header::from_byte_slice(&rest[..512]).entry_size().unwrap();
        let whole = 512 + usize::try_from(size).unwrap() + padding(size).len();
        entries.push(rest[..whole].to_vec());
        rest = &rest[whole..];
    }
    entries
}

fn entry(name: &str, content: &[u8]) -> Vec<u8> {
    let size = content.len() as u64;
    [&*header(name, size).unwrap(), content, padding(size)].concat()
}

fn joined(entries: &[Vec<u8>]) -> Vec<u8> {
    [&entries.concat(), END].concat()
}

/// An entry of any kind; its name is put in as it is.
fn raw(kind: EntryType, name: &str, size: u64, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_cksum();
    [&header.as_bytes()[..], content, padding(content.len() as u64)].concat()
}

/// The digest that every later program must arrive at, too: it is written down in other registries.
#[tokio::test]
async fn the_digest_of_a_manifest_never_changes() {
    let (digest, _) = archive().await;
    assert_eq!(digest, "sha256:51f2027e1eb71e234653b75426558ffd389e18731a93506aa0f97f4b383a0725");
}

#[tokio::test]
async fn what_is_written_is_read_by_us_and_by_the_tar_crate() {
    let (digest, bytes) = archive().await;
    let store = Memory::default();
    let (arrival, manifest) = receive(&bytes, 1000, &store).await.unwrap();
    let Version { id, artifacts, description, task, parameters, tags, origin, create_time, .. } = version();
    assert_eq!(manifest, digest);
    assert_eq!(arrival.artifacts, artifacts);
    assert_eq!((arrival.provenance.id, arrival.provenance.create_time), (id.clone(), create_time));
    assert_eq!((arrival.provenance.origin, arrival.draft.model), (origin, id.model));
    assert_eq!((arrival.draft.description, arrival.draft.task), (description, task));
    assert_eq!((arrival.draft.parameters, arrival.draft.tags), (parameters, tags));
    assert!(arrival.draft.origin.is_none(), "a source elsewhere names nothing here");
    let kept = store.0.lock().clone();
    assert_eq!(kept.len(), 3, "equal files are in it once, and the documents are not files");
    assert!(FILES.iter().all(|(_, bytes)| kept[sha256(bytes).as_str()] == *bytes));

    let mut names = BTreeSet::new();
    for entry in tar::Archive::new(&*bytes).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut hash = Sha256::new();
        std::io::copy(&mut entry, &mut hash).unwrap();
        if let Some(blob) = name.strip_prefix("blobs/sha256/") {
            assert_eq!(blob, Sha256Hex::of(hash).as_str());
        }
        names.insert(name);
    }
    assert_eq!(names.len(), 8);
}

#[tokio::test]
async fn only_plain_files_of_a_layout_are_taken() {
    let (_, good) = archive().await;
    let with = |entry: Vec<u8>| joined(&[vec![entry], entries(&good)].concat());
    let kinds = [
        (EntryType::Symlink, "link"),
        (EntryType::Link, "link"),
        (EntryType::GNUSparse, "file with holes"),
        (EntryType::GNULongName, "header of another format"),
        (EntryType::XGlobalHeader, "header of another format"),
        (EntryType::Char, "device"),
        (EntryType::Fifo, "device"),
        (EntryType::new(b'?'), "unknown kind"),
    ];
    for (kind, said) in kinds {
        let problem = problem(&with(raw(kind, "blobs/sha256/x", 0, b""))).await;
        assert!(problem.contains(said), "{kind:?}: {problem}");
    }
    for name in
        ["../etc/passwd", "/etc/passwd", "blobs/sha256/../../x", "blobs/sha256/", "blobs/md5/0", "x", "blobs/sha256/AB"]
    {
        let problem = problem(&with(raw(EntryType::Regular, name, 0, b""))).await;
        assert!(
            problem.contains("which an image layout has not") || problem.contains("not named by"),
            "{name}: {problem}"
        );
    }
    let problem_of = async |directory: &str| problem(&with(raw(EntryType::Directory, directory, 0, b""))).await;
    assert!(problem_of("../").await.contains("directory `../`"));
    receive(&with(raw(EntryType::Directory, "./blobs/sha256/", 0, b"")), 99, &Memory::default()).await.unwrap();
}

#[tokio::test]
async fn extended_headers_may_give_a_size_and_nothing_else_that_counts() {
    let (_, good) = archive().await;
    let mut list = entries(&good);
    let record = |text: &str| {
        let length = (0..1000).find(|length| format!("{length} {text}\n").len() == *length).unwrap();
        format!("{length} {text}\n").into_bytes()
    };
    let extended = |records: &[u8], entry: &[u8]| {
        [raw(EntryType::XHeader, "PaxHeaders.0/x", records.len() as u64, records), entry.to_vec()].concat()
    };
    let last = list.pop().unwrap();
    let size = last.len() - 512;
    let with = |records: &[u8], last: &[u8]| joined(&[list.clone(), vec![extended(records, last)]].concat());
    // The header itself says 0: what counts is the extended one, as everywhere.
    let mut zero = Header::from_byte_slice(&last[..512]).clone();
    zero.set_size(0);
    zero.set_cksum();
    let real = Header::from_byte_slice(&last[..512]).entry_size().unwrap();
    let zeroed = [&zero.as_bytes()[..], &last[512..512 + size]].concat();
    let sized = record(&format!("size={real}"));
    receive(&with(&[record("mtime=1.5"), sized].concat(), &zeroed), 700, &Memory::default()).await.unwrap();

    for (text, said) in [("path=x", "`path`"), ("linkpath=x", "`linkpath`"), ("GNU.sparse.size=9", "GNU.sparse.size")] {
        let problem = problem(&with(&record(text), &last)).await;
        assert!(problem.contains(said), "{text}: {problem}");
    }
    assert!(problem(&with(b"garbage\n", &last)).await.contains("damaged extended header"));
    let huge = raw(EntryType::XHeader, "x", 10 << 30, b"");
    assert!(problem(&[huge, good.clone()].concat()).await.contains("10737418240 bytes, at most 65536"));
    let huge = entry_of_size("index.json", 1 << 40);
    assert!(problem(&huge).await.contains("at most 1048576"));
    let huge = entry_of_size(&format!("blobs/sha256/{}", "a".repeat(64)), 1 << 40);
    assert!(problem(&huge).await.contains("too much"));
}

fn entry_of_size(name: &str, size: u64) -> Vec<u8> {
    header(name, size).unwrap().to_vec()
}

#[tokio::test]
async fn what_is_missing_double_or_foreign_is_named() {
    let (_, good) = archive().await;
    let list = entries(&good);
    let names = ["oci-layout", "index.json", "manifest", "config", "document", "{}", "weights", "empty"];
    assert_eq!(list.len(), names.len());
    for (at, name) in names.iter().enumerate() {
        let mut without = list.clone();
        let gone = without.remove(at);
        let problem_without = problem(&joined(&without)).await;
        assert!(["has no", "lacks"].iter().any(|word| problem_without.contains(word)), "{name}: {problem_without}");
        let twice = problem(&joined(&[list.clone(), vec![gone]].concat())).await;
        assert!(twice.contains("twice"), "{name}: {twice}");
    }
    let foreign = entry(&format!("blobs/sha256/{}", sha256(b"foreign")), b"foreign");
    for at in 0..=list.len() {
        let mut with = list.clone();
        with.insert(at, foreign.clone());
        let problem = problem(&joined(&with)).await;
        assert!(problem.contains("which its manifest does not name"), "{at}: {problem}");
    }
    let index = String::from_utf8(list[1][512..].to_vec()).unwrap();
    let index = index.trim_end_matches('\0');
    let two = index.replacen("[{", "[{\"mediaType\":\"x\",\"digest\":\"y\",\"size\":1},{", 1);
    let other = |at: usize, with: Vec<u8>| {
        let mut list = list.clone();
        list[at] = with;
        joined(&list)
    };
    assert!(problem(&other(1, entry("index.json", two.as_bytes()))).await.contains("names 2 manifests"));
    assert!(problem(&other(1, entry("index.json", b"[1"))).await.contains("`index.json` that cannot be read"));
    let old = br#"{"imageLayoutVersion":"2.0.0"}"#;
    assert!(problem(&other(0, entry("oci-layout", old))).await.contains("layout version `2.0.0`"));
    assert!(problem(&[good.clone(), vec![1]].concat()).await.contains("goes on after its end"));
    assert!(problem(&[good.clone(), vec![0; 2 << 20]].concat()).await.contains("goes on after its end"));
    receive(&[good, vec![0; 9000]].concat(), 5000, &Memory::default()).await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_order_of_the_entries_and_the_pieces_do_not_matter(
        order in Just((0..8).collect::<Vec<usize>>()).prop_shuffle(),
        piece in 1_usize..5000,
    ) {
        run(async {
            let (digest, good) = archive().await;
            let list = entries(&good);
            let shuffled: Vec<_> = order.iter().map(|at| list[*at].clone()).collect();
            let store = Memory::default();
            let (arrival, manifest) = receive(&joined(&shuffled), piece, &store).await.unwrap();
            prop_assert_eq!(manifest, digest);
            prop_assert_eq!(arrival.artifacts, version().artifacts);
            let kept = store.0.lock();
            prop_assert!(FILES.iter().all(|(_, bytes)| kept[sha256(bytes).as_str()] == *bytes));
            Ok(())
        })?;
    }

    /// Whatever has been done to an archive: it is refused, or what comes out is what went in.
    #[test]
    fn a_damaged_archive_is_refused_or_makes_no_difference(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        piece in 1_usize..5000,
    ) {
        run(async {
            let (digest, mut bytes) = archive().await;
            for (at, with) in flips {
                let at = at.index(bytes.len());
                bytes[at] = with;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            let store = Memory::default();
            match receive(&bytes, piece, &store).await {
                Ok((arrival, manifest)) => {
                    prop_assert_eq!(manifest, digest);
                    prop_assert_eq!(arrival.artifacts, version().artifacts);
                    prop_assert_eq!(arrival.draft.tags, version().tags);
                }
                Err(Error::Invalid { .. } | Error::DataLoss { .. }) => {}
                Err(other) => prop_assert!(false, "{other:?}"),
            }
            prop_assert!(store.0.lock().iter().all(|(name, bytes)| *name == sha256(bytes).to_string()));
            Ok(())
        })?;
    }

    #[test]
    fn bytes_that_are_no_archive_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..3000), piece in 1_usize..700) {
        run(async {
            prop_assert!(receive(&bytes, piece, &Memory::default()).await.is_err());
            Ok(())
        })?;
    }
}
