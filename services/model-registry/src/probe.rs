//! Whether the registry can serve: the database is asked, and one answer alone changes nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use verdict_chassis::health::Health;

use crate::SERVICES;
use crate::metrics::DATABASE_UP;
use crate::store::Store;

const EVERY: Duration = Duration::from_secs(5);
/// An answer that takes longer counts as none.
const PATIENCE: Duration = Duration::from_secs(3);
/// As many answers in a row change the verdict.
const IN_A_ROW: u32 = 2;

/// Asks the database until `stop`, and keeps `health` up to date.
pub(crate) async fn run(store: Arc<dyn Store>, health: Health, stop: CancellationToken) {
    let mut verdict = Verdict { serving: true, against: 0 };
    let mut interval = tokio::time::interval(EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = interval.tick() => {}
        }
        let answer = tokio::time::timeout(PATIENCE, store.last_sequence()).await;
        let answered = matches!(answer, Ok(Ok(_)));
        if verdict.hear(answered) {
            let why = if verdict.serving { "the database answers" } else { "the database does not answer" };
            tracing::warn!(database.up = verdict.serving, "{why}");
            for service in SERVICES {
                health.set(service, verdict.serving, why);
            }
        }
        metrics::gauge!(DATABASE_UP).set(if verdict.serving { 1.0 } else { 0.0 });
    }
}

struct Verdict {
    serving: bool,
    /// Answers in a row that speak against it.
    against: u32,
}

impl Verdict {
    /// Takes in one answer; returns whether the verdict changed.
    fn hear(&mut self, answered: bool) -> bool {
        if answered == self.serving {
            self.against = 0;
            return false;
        }
        self.against += 1;
        if self.against < IN_A_ROW {
            return false;
        }
        *self = Self { serving: answered, against: 0 };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_answers_in_a_row_change_the_verdict() {
        let mut verdict = Verdict { serving: true, against: 0 };
        let heard: Vec<_> = [false, true, false, false, true, false, true, true]
            .into_iter()
            .map(|answered| (verdict.hear(answered), verdict.serving))
            .collect();
        let steady_and_changes = [
            (false, true),
            (false, true),
            (false, true),
            (true, false),
            (false, false),
            (false, false),
            (false, false),
            (true, true),
        ];
        assert_eq!(heard, steady_and_changes);
    }
}
