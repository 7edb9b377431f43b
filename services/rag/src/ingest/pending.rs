//! Which documents a stream has taken in and not stored yet, and how much room they hold.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::chunk::Length;
use crate::document::{Collection, Document};

/// Room of one stream, in bytes as [`weight`] estimates them. A document that is heavier goes alone.
const ROOM: u32 = 128 << 20;
/// How many times a document's text is held while it goes through: whole, in passages, and as what is embedded.
const TIMES_HELD: usize = 4;
/// About what a passage holds besides text: a dense vector of up to 512 dimensions, a sparse one, and their frame.
const PASSAGE_BYTES: usize = 4096;

/// The messages that are on their way to the store.
#[derive(Clone)]
pub(super) struct Pending {
    /// How many there are of each document.
    counts: Arc<parking_lot::Mutex<HashMap<Key, usize>>>,
    room: Arc<Semaphore>,
}

type Key = (Collection, String);

/// A message on its way; dropped when it is stored or will not be.
pub(super) struct Entered {
    pending: Pending,
    key: Key,
    /// Whether an earlier message of the same document was on its way when this one entered: what is stored then is
    /// not what this one will meet.
    pub(super) follows_another: bool,
    _room: Option<OwnedSemaphorePermit>,
}

impl Pending {
    pub(super) fn new() -> Self {
        Self { counts: Arc::default(), room: Arc::new(Semaphore::new(ROOM as usize)) }
    }

    /// Notes a message and waits until there is room for it. To be called for one message after the other.
    pub(super) async fn enter(&self, collection: &Collection, document: &Document, length: Length) -> Entered {
        let weight = u32::try_from(weight(document, length)).unwrap_or(ROOM).min(ROOM);
        // The room is never closed, so it is always given.
        let room = self.room.clone().acquire_many_owned(weight).await.ok();
        let key = (collection.clone(), document.id.clone());
        let mut counts = self.counts.lock();
        let count = counts.entry(key.clone()).or_default();
        *count += 1;
        let follows_another = *count > 1;
        Entered { pending: self.clone(), key, follows_another, _room: room }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut counts = self.pending.counts.lock();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

/// Estimates the bytes a document holds on its way, rather more than less: as if each token were one byte long, and so
/// the passages, which repeat title, URI and metadata, as many as can be.
fn weight(document: &Document, length: Length) -> usize {
    let Document { id, content_type: _, content, title, uri, metadata } = document;
    let labels: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    let repeated = id.len() + title.len() + uri.len() + labels;
    let stride = length.tokens.saturating_sub(length.overlap).max(1);
    let passages = content.len() / stride + 1;
    content.len() * TIMES_HELD + passages * (PASSAGE_BYTES + repeated)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures::FutureExt;

    use super::*;

    const LENGTH: Length = Length { tokens: 200, overlap: 40 };

    fn document(id: &str, bytes: usize) -> Document {
        Document {
            id: id.into(),
            content_type: "text/plain".into(),
            content: vec![b'x'; bytes],
            title: String::new(),
            uri: String::new(),
            metadata: BTreeMap::new(),
        }
    }

    #[tokio::test]
    async fn a_message_follows_another_until_that_one_left() {
        let (pending, a, b) = (Pending::new(), Collection::new("a").unwrap(), Collection::new("b").unwrap());
        let enter = async |collection, id| pending.enter(collection, &document(id, 1), LENGTH).await;
        let first = enter(&a, "1").await;
        assert!(!first.follows_another);
        assert!(!enter(&b, "1").await.follows_another && !enter(&a, "2").await.follows_another);
        let second = enter(&a, "1").await;
        assert!(second.follows_another);
        drop(first);
        assert!(enter(&a, "1").await.follows_another, "the second is still on its way");
        drop(second);
        assert!(!enter(&a, "1").await.follows_another);
        assert!(pending.counts.lock().is_empty(), "what left is forgotten");
    }

    #[tokio::test]
    async fn what_is_too_heavy_goes_alone_and_the_next_one_waits_for_it() {
        let (pending, collection) = (Pending::new(), Collection::new("a").unwrap());
        let enter = |bytes| {
            let (pending, collection) = (pending.clone(), collection.clone());
            async move { pending.enter(&collection, &document("1", bytes), LENGTH).await }
        };
        let heavy = enter(16 << 20).now_or_never().expect("there is room for one, however heavy");
        let mut next = Box::pin(enter(1));
        assert!((&mut next).now_or_never().is_none(), "there is no room left");
        drop(heavy);
        let next = next.await;
        assert!(enter(1 << 20).now_or_never().is_some(), "small ones go together");
        drop(next);
        assert_eq!(pending.room.available_permits(), ROOM as usize, "all room is given back");
    }
}
