//! Answers to calls that may be repeated: the same request id and content returns the first answer.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use prost::Message;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Most answers that are remembered.
const REMEMBERED: usize = 1000;
const MAX_REQUEST_ID: usize = 128;

/// The newest answers of one process.
#[derive(Default)]
pub struct Repeats {
    answers: Mutex<Answers>,
}

#[derive(Default)]
struct Answers {
    by_id: HashMap<String, Answer>,
    /// Oldest first.
    order: VecDeque<String>,
}

struct Answer {
    asked: [u8; 32],
    answer: Vec<u8>,
}

impl Repeats {
    /// Does `work` for `request`, or returns what it answered when it came first under this id. Without an id it is
    /// always done.
    pub async fn once<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        id: &str,
        request: &Q,
        work: impl Future<Output = Result<A>>,
    ) -> Result<A> {
        if id.is_empty() {
            return work.await;
        }
        if id.len() > MAX_REQUEST_ID || id.chars().any(char::is_control) {
            let problem = format!("has {} bytes: 1 to {MAX_REQUEST_ID}, without control characters", id.len());
            return Err(Error::field("request_id", problem));
        }
        let mut hash = Sha256::new_with_prefix(method);
        hash.update([0]);
        hash.update(request.encode_to_vec());
        let asked: [u8; 32] = hash.finalize().into();
        if let Some(first) = self.answers.lock().by_id.get(id) {
            if first.asked != asked {
                return Err(Error::CallReused(id.to_owned()));
            }
            return A::decode(first.answer.as_slice()).map_err(|error| Error::Internal(error.into()));
        }
        let answer = work.await?;
        let mut answers = self.answers.lock();
        if answers.order.len() == REMEMBERED
            && let Some(oldest) = answers.order.pop_front()
        {
            answers.by_id.remove(&oldest);
        }
        if answers.by_id.insert(id.to_owned(), Answer { asked, answer: answer.encode_to_vec() }).is_none() {
            answers.order.push_back(id.to_owned());
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use verdict_api::predict::{GetRouteRequest, Route};

    use super::*;

    #[tokio::test]
    async fn the_first_answer_stands_for_the_same_call_and_no_other() {
        let repeats = Repeats::default();
        let ask = async |id: &str, name: &str, answer: &str| {
            let request = GetRouteRequest { name: name.to_owned() };
            let answer = Route { name: answer.to_owned(), ..Route::default() };
            repeats.once("m", id, &request, async { Ok(answer) }).await.map(|route| route.name)
        };
        assert_eq!(ask("1", "a", "first").await.unwrap(), "first");
        assert_eq!(ask("1", "a", "second").await.unwrap(), "first");
        assert!(matches!(ask("1", "b", "second").await, Err(Error::CallReused(_))));
        assert_eq!(ask("", "a", "third").await.unwrap(), "third");
        assert!(matches!(ask("a\0", "a", "x").await, Err(Error::Invalid(_))));
        for id in 0..REMEMBERED {
            ask(&format!("id-{id}"), "a", "x").await.unwrap();
        }
        assert_eq!(ask("1", "b", "forgotten").await.unwrap(), "forgotten");
        assert_eq!(repeats.answers.lock().by_id.len(), REMEMBERED);
    }
}
