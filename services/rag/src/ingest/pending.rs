//! Which documents a stream has taken in and not stored yet.

use std::collections::HashMap;
use std::sync::Arc;

use crate::document::Collection;

/// Counts, for each document, the messages that are on their way to the store.
#[derive(Clone, Default)]
pub(super) struct Pending(Arc<parking_lot::Mutex<HashMap<Key, usize>>>);

type Key = (Collection, String);

/// A message on its way; dropped when it is stored or will not be.
pub(super) struct Entered {
    pending: Pending,
    key: Key,
    /// Whether an earlier message of the same document was on its way when this one entered: what is stored then is
    /// not what this one will meet.
    pub(super) follows_another: bool,
}

impl Pending {
    /// Notes a message. To be called in the order of the messages.
    pub(super) fn enter(&self, collection: &Collection, document_id: &str) -> Entered {
        let key = (collection.clone(), document_id.to_owned());
        let mut counts = self.0.lock();
        let count = counts.entry(key.clone()).or_default();
        *count += 1;
        let follows_another = *count > 1;
        Entered { pending: self.clone(), key, follows_another }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut counts = self.pending.0.lock();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_follows_another_until_that_one_left() {
        let (pending, a, b) = (Pending::default(), Collection::new("a").unwrap(), Collection::new("b").unwrap());
        let first = pending.enter(&a, "1");
        assert!(!first.follows_another);
        assert!(!pending.enter(&b, "1").follows_another && !pending.enter(&a, "2").follows_another);
        let second = pending.enter(&a, "1");
        assert!(second.follows_another);
        drop(first);
        assert!(pending.enter(&a, "1").follows_another, "the second is still on its way");
        drop(second);
        assert!(!pending.enter(&a, "1").follows_another);
        assert!(pending.0.lock().is_empty(), "what left is forgotten");
    }
}
