//! Where a batch ends: pure, so that its promises can be tested.

/// What one batch may hold.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Most items, at least 1.
    pub items: usize,
    /// Most cost (tokens or rows); a single item may exceed it, or it could never run.
    pub cost: usize,
}

/// Returns how many of the `waiting` costs, taken from the front, make the next batch.
///
/// Takes at least one when something waits, so nothing starves; never more than `budget`; and never more than its share
/// when `idle` workers (the asking one included) are there to split what waits, `total` in all.
pub fn cut(waiting: impl IntoIterator<Item = usize>, total: usize, idle: usize, budget: Budget) -> usize {
    let share = total.div_ceil(idle.max(1)).min(budget.cost);
    let mut taken = 0;
    let mut cost = 0;
    for next in waiting.into_iter().take(budget.items.max(1)) {
        if taken > 0 && cost + next > share {
            break;
        }
        taken += 1;
        cost += next;
    }
    taken
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

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
    }

    #[test]
    fn idle_workers_get_their_share() {
        let budget = Budget { items: 64, cost: 4096 };
        assert_eq!(cut([32; 32], 32 * 32, 2, budget), 16);
        assert_eq!(cut([32; 32], 32 * 32, 1, budget), 32);
    }
}
