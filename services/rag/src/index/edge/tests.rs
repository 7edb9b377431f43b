//! What the suite of both back-ends does not ask: what is on disk, and who may have it.

use super::*;
use crate::index::conformance::{document, schema};

fn collection() -> Collection {
    Collection::new("docs").unwrap()
}

/// What a process would find that was started after this one was killed here.
async fn after_a_kill(root: &Path, asked: &[(String, String)]) -> Vec<Holding> {
    let copy = tempfile::tempdir().unwrap();
    copy_below(root, copy.path());
    EdgeIndex::open(copy.path()).unwrap().holdings(&collection(), asked).await.unwrap()
}

fn copy_below(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() {
            std::fs::create_dir_all(&to).unwrap();
            copy_below(&from, &to);
        } else {
            std::fs::copy(&from, &to).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_to_be_stored_is_on_disk_even_after_a_write_that_failed_halfway() {
    let dir = tempfile::tempdir().unwrap();
    let index = EdgeIndex::open(dir.path()).unwrap();
    index.create(&collection(), &schema()).await.unwrap();
    let shard = index.0.find(&collection()).unwrap().unwrap();
    let asked = [("a".to_owned(), "1".to_owned())];

    // As a replacement does before an error ends it: without a flush.
    shard.upsert(document("a", "1", 0, &["one", "two"]).points).unwrap();
    assert_eq!(after_a_kill(dir.path(), &asked).await, [Holding::Nothing]);
    let same = [Holding::Same { chunks: 2 }];
    assert_eq!(index.holdings(&collection(), &asked).await.unwrap(), same);
    assert_eq!(after_a_kill(dir.path(), &asked).await, same);

    let of_document = only(matches("document_id", text("a")));
    shard.update(UpdateOperation::PointOperation(PointOperations::DeletePointsByFilter(of_document))).unwrap();
    assert_eq!(after_a_kill(dir.path(), &asked).await, same);
    assert_eq!(index.delete(&collection(), "a").await.unwrap(), 0);
    assert_eq!(after_a_kill(dir.path(), &asked).await, [Holding::Nothing]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_log_is_shortened_while_the_collection_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = EdgeIndex::open(dir.path()).unwrap();
    Arc::get_mut(&mut index.0).unwrap().long_log = 1;
    index.create(&collection(), &schema()).await.unwrap();
    // The engine's segments hold 32 MiB.
    let text = "x".repeat(4 << 20);
    let replace = async |i: usize| {
        index.replace(&collection(), vec![document(&format!("d{i}"), "1", 0, &[&text])]).await.unwrap();
        log::spare_bytes(&log_dir(&dir.path().join("docs"))).unwrap()
    };
    let busy = index.0.find(&collection()).unwrap();
    let mut written = 0;
    while replace(written).await == 0 {
        written += 1;
    }
    drop(busy);
    assert_eq!(replace(written + 1).await, 0, "only the last closed segment is left, once no call holds the rest");
    let all = written as u64 + 2;
    assert_eq!(index.counts(&collection()).await.unwrap(), Counts { documents: all, chunks: all });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_is_refused_and_deletes_nothing_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let index = EdgeIndex::open(dir.path()).unwrap();
    index.create(&collection(), &schema()).await.unwrap();
    let log = log_dir(&dir.path().join("docs"));
    for name in ["closed-1", "closed-2"] {
        std::fs::write(log.join(name), "of the first").unwrap();
    }
    let refused = EdgeIndex::open(dir.path()).unwrap().schema(&collection()).await.unwrap_err();
    assert!(format!("{refused:?}").contains("another process"), "{refused:?}");
    assert!(log.join("closed-1").exists());
}
