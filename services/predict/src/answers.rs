//! Answers that were computed before: kept by the digest of the model and the hash of the input, within a bound of
//! bytes.
//!
//! Only for families whose answer follows from the input alone. A tenant finds what it asked itself, and nobody else's:
//! neither answers nor the fact that somebody asked leave a tenant.

use std::{any::Any, sync::Arc};

use quick_cache::{Weighter, sync::Cache};
use sha2::{Digest, Sha256};

use crate::metrics;

/// What is held besides the value: key, pointers, the cache's own bookkeeping.
const OVERHEAD: usize = 128;

/// Names an answer: SHA-256 over model digest, operation, tenant and input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

/// An answer that can be kept.
pub trait Answer: Clone + Send + Sync + 'static {
    /// Bytes it holds on to.
    fn bytes(&self) -> usize;
}

impl Answer for f32 {
    fn bytes(&self) -> usize {
        size_of::<Self>()
    }
}

impl<T: Copy + Send + Sync + 'static> Answer for Vec<T> {
    fn bytes(&self) -> usize {
        size_of_val(self.as_slice()) + size_of::<Self>()
    }
}

/// The answers of one process.
pub struct AnswerCache {
    kept: Cache<Key, Kept, Bytes>,
}

#[derive(Clone)]
struct Kept {
    value: Arc<dyn Any + Send + Sync>,
    bytes: usize,
}

#[derive(Clone)]
struct Bytes;

impl Weighter<Key, Kept> for Bytes {
    fn weight(&self, _: &Key, kept: &Kept) -> u64 {
        (kept.bytes + OVERHEAD) as u64
    }
}

/// What one operation of one model version finds in the cache.
pub struct Scope {
    cache: Arc<AnswerCache>,
    named: Sha256,
}

/// [`Scope`] for the items of one queue.
pub struct Answers<I, O> {
    scope: Scope,
    feed: fn(&I, &mut Sha256),
    find: fn(&Scope, &Key) -> Option<O>,
    keep: fn(&Scope, Key, &O),
}

impl AnswerCache {
    /// Keeps at most `bytes`; `None` for a cache of no bytes.
    pub fn new(bytes: usize) -> Option<Arc<Self>> {
        let usual = 1024;
        let kept = Cache::with_weighter((bytes / usual).clamp(64, 1 << 20), bytes as u64, Bytes);
        (bytes > 0).then(|| Arc::new(Self { kept }))
    }

    /// Returns what is kept, in bytes.
    pub fn bytes(&self) -> u64 {
        self.kept.weight()
    }

    /// Narrows to one operation of the version with this digest.
    pub fn scope(self: &Arc<Self>, digest: &str, operation: &str) -> Scope {
        let mut named = Sha256::new();
        put(&mut named, digest.as_bytes());
        put(&mut named, operation.as_bytes());
        Scope { cache: self.clone(), named }
    }
}

impl Scope {
    /// Names the answer to the input that `feed` writes down.
    pub fn key(&self, tenant: &str, feed: impl FnOnce(&mut Sha256)) -> Key {
        let mut hash = self.named.clone();
        put(&mut hash, tenant.as_bytes());
        feed(&mut hash);
        Key(hash.finalize().into())
    }

    /// Returns the answer, if it is kept.
    pub fn find<O: Answer>(&self, key: &Key) -> Option<O> {
        self.cache.kept.get(key)?.value.downcast_ref::<O>().cloned()
    }

    /// Keeps an answer, and lets go of others that have been asked for less where there is no room.
    pub fn keep<O: Answer>(&self, key: Key, answer: &O) {
        let kept = Kept { value: Arc::new(answer.clone()), bytes: answer.bytes() };
        self.cache.kept.insert(key, kept);
        metrics::cached(self.cache.bytes());
    }

    /// Serves the items of a queue; `feed` writes down all of an item that its answer depends on.
    pub fn of<I, O: Answer>(self, feed: fn(&I, &mut Sha256)) -> Answers<I, O> {
        Answers { scope: self, feed, find: Self::find::<O>, keep: Self::keep::<O> }
    }
}

impl<I, O> Answers<I, O> {
    /// Names the answer to `item`.
    pub fn key(&self, tenant: &str, item: &I) -> Key {
        self.scope.key(tenant, |hash| (self.feed)(item, hash))
    }

    /// Returns the answer, if it is kept.
    pub fn find(&self, key: &Key) -> Option<O> {
        (self.find)(&self.scope, key)
    }

    /// Keeps an answer.
    pub fn keep(&self, key: Key, answer: &O) {
        (self.keep)(&self.scope, key, answer);
    }
}

/// Writes a part of a key so that no two lists of parts are written alike.
pub fn put(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

/// Writes numbers as a part of a key.
pub fn put_numbers<const N: usize>(hash: &mut Sha256, numbers: impl ExactSizeIterator<Item = [u8; N]>) {
    hash.update((numbers.len() as u64).to_le_bytes());
    numbers.for_each(|number| hash.update(number));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(item: &u32, hash: &mut Sha256) {
        put(hash, &item.to_le_bytes());
    }

    #[test]
    fn an_answer_is_found_by_its_model_operation_tenant_and_input_alone() {
        let cache = AnswerCache::new(1 << 20).unwrap();
        let scope = |digest, operation| cache.scope(digest, operation).of::<u32, Vec<f32>>(feed);
        let answers = scope("sha256:a", "embed");
        answers.keep(answers.key("acme", &1), &vec![1.0, 2.0]);
        assert_eq!(answers.find(&answers.key("acme", &1)), Some(vec![1.0, 2.0]));
        assert_eq!(answers.find(&answers.key("acme", &2)), None);
        assert_eq!(answers.find(&answers.key("other", &1)), None);
        for other in [scope("sha256:b", "embed"), scope("sha256:a", "rerank")] {
            assert_eq!(other.find(&other.key("acme", &1)), None);
        }
    }

    #[test]
    fn bytes_are_bounded_and_what_is_asked_for_again_stays() {
        let cache = AnswerCache::new(256 << 10).unwrap();
        let answers = cache.scope("sha256:a", "embed").of::<u32, Vec<f32>>(feed);
        let hot = answers.key("", &0);
        answers.keep(hot, &vec![0.0; 256]);
        for number in 1..10_000 {
            answers.keep(answers.key("", &number), &vec![0.0; 256]);
            assert!(answers.find(&hot).is_some(), "after {number}");
            assert!(cache.bytes() <= 256 << 10);
        }
        assert!(cache.bytes() > 128 << 10, "the room is used");
        answers.keep(answers.key("", &1), &vec![0.0; 1 << 20]);
        assert!(cache.bytes() <= 256 << 10, "what is larger than all the room is not kept");
    }

    #[test]
    fn no_bytes_are_no_cache() {
        assert!(AnswerCache::new(0).is_none());
    }
}
