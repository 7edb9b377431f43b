//! Where a batch ends, and whether it starts now: pure, so that its promises can be tested.

use std::time::Duration;

/// What one batch may hold.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Most items, at least 1.
    pub items: usize,
    /// Most cost (tokens or rows); a single item may exceed it, or it could never run.
    pub cost: usize,
}

/// What waits when a worker asks for a batch.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    pub items: usize,
    pub cost: usize,
    /// How long the oldest has waited.
    pub oldest: Duration,
    /// Until the most urgent must have begun to end in time; `None` when nothing has a deadline.
    pub slack: Option<Duration>,
}

/// Returns how long a worker waits for more before it starts a batch; `None` when it starts now.
///
/// Never past `delay` after the oldest came, never past the moment the most urgent must begin, and not at all when a
/// batch is full. With a `delay` of zero a worker never waits for more than the first.
pub fn linger(waiting: Waiting, budget: Budget, delay: Duration) -> Option<Duration> {
    let Waiting { items, cost, oldest, slack } = waiting;
    if items >= budget.items || cost >= budget.cost {
        return None;
    }
    let left = delay.saturating_sub(oldest);
    let left = slack.map_or(left, |slack| left.min(slack));
    (!left.is_zero()).then_some(left)
}

/// Decides item by item, in the order they are to run, how many make a batch.
///
/// Takes at least one, so nothing starves; never more than the budget; and never more than its share when several idle
/// workers are there to split what waits.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    items: usize,
    share: usize,
    taken: usize,
    cost: usize,
}

impl Cut {
    /// Begins a batch of what waits, `total` cost in all, to be split among `idle` workers, the asking one included.
    pub fn new(total: usize, idle: usize, budget: Budget) -> Self {
        let share = total.div_ceil(idle.max(1)).min(budget.cost);
        Self { items: budget.items.max(1), share, taken: 0, cost: 0 }
    }

    /// Takes the next item into the batch if it belongs there; after the first refusal the batch is over.
    pub fn takes(&mut self, cost: usize) -> bool {
        let fits = self.taken == 0 || (self.taken < self.items && self.cost.saturating_add(cost) <= self.share);
        if fits {
            self.taken += 1;
            self.cost = self.cost.saturating_add(cost);
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn cut(costs: impl IntoIterator<Item = usize>, total: usize, idle: usize, budget: Budget) -> usize {
        let mut cut = Cut::new(total, idle, budget);
        costs.into_iter().take_while(|cost| cut.takes(*cost)).count()
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    proptest! {
        #[test]
        fn a_batch_is_never_empty_and_never_over_budget(
            costs in prop::collection::vec(1_usize..600, 1..200), idle in 1_usize..8, items in 1_usize..70, cost in 1_usize..5000,
        ) {
            let total = costs.iter().sum();
            let taken = cut(costs.iter().copied(), total, idle, Budget { items, cost });
            prop_assert!(taken >= 1 && taken <= items);
            let sum: usize = costs[..taken].iter().sum();
            prop_assert!(taken == 1 || sum <= cost);
            // Nothing is left behind that would have fitted.
            if let Some(next) = costs.get(taken) {
                prop_assert!(taken == items || sum + next > cost.min(total.div_ceil(idle)));
            }
        }

        #[test]
        fn repeated_cuts_run_everything_in_order(costs in prop::collection::vec(1_usize..600, 0..200), idle in 1_usize..8) {
            let mut waiting: VecDeque<_> = costs.into_iter().enumerate().collect();
            let (count, mut total) = (waiting.len(), waiting.iter().map(|(_, cost)| cost).sum::<usize>());
            let mut run = Vec::new();
            while !waiting.is_empty() {
                let budget = Budget { items: 64, cost: 4096 };
                let taken = cut(waiting.iter().map(|(_, cost)| *cost), total, idle, budget);
                prop_assert!((1..=waiting.len()).contains(&taken));
                for (number, cost) in waiting.drain(..taken) {
                    total -= cost;
                    run.push(number);
                }
            }
            prop_assert!(run.into_iter().eq(0..count));
        }

        #[test]
        fn idle_workers_split_what_waits(cost in 1_usize..100, count in 1_usize..64, idle in 1_usize..8) {
            let (total, budget) = (cost * count, Budget { items: 64, cost: 1 << 20 });
            let (mut left, mut batches) = (count, 0);
            for free in (1..=idle).rev() {
                let taken = if left == 0 { 0 } else { cut(std::iter::repeat_n(cost, left), cost * left, free, budget) };
                left -= taken;
                batches += usize::from(taken > 0);
            }
            prop_assert_eq!(left, 0, "of {} cost", total);
            prop_assert_eq!(batches, count.min(idle), "as many batches as workers, where there is work for all");
        }

        #[test]
        fn nobody_lingers_past_the_delay_or_a_deadline(
            items in 1_usize..100, cost in 1_usize..10_000, oldest in 0_u64..50, delay in 0_u64..50, slack in prop::option::of(0_u64..50),
        ) {
            let (budget, slack) = (Budget { items: 64, cost: 4096 }, slack.map(millis));
            let waits = linger(Waiting { items, cost, oldest: millis(oldest), slack }, budget, millis(delay));
            if let Some(waits) = waits {
                prop_assert!(!waits.is_zero() && waits + millis(oldest) <= millis(delay));
                prop_assert!(slack.is_none_or(|slack| waits <= slack));
                prop_assert!(items < 64 && cost < 4096);
            } else {
                let is_due = oldest >= delay || slack.is_some_and(|slack| slack.is_zero());
                prop_assert!(is_due || items >= 64 || cost >= 4096);
            }
        }
    }

    #[test]
    fn idle_workers_get_their_share() {
        let budget = Budget { items: 64, cost: 4096 };
        assert_eq!(cut([32; 32], 32 * 32, 2, budget), 16);
        assert_eq!(cut([32; 32], 32 * 32, 1, budget), 32);
    }
}
