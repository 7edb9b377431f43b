use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// Tenant, priority, cost, number of arrival.
type Job = (usize, Priority, usize, usize);

const WIDE: Budget = Budget { items: 8, cost: 1000 };

fn tenant(number: usize) -> Arc<str> {
    format!("tenant-{number}").into()
}

fn priority(is_batch: bool) -> Priority {
    if is_batch { Priority::Batch } else { Priority::Interactive }
}

fn push(queue: &mut Queue<Job>, job: Job) {
    queue.push(job.1, &tenant(job.0), [(job, job.2)]);
}

fn arrivals() -> impl Strategy<Value = Vec<(usize, bool, usize)>> {
    prop::collection::vec((0..5_usize, any::<bool>(), 1..400_usize), 1..200)
}

proptest! {
    #[test]
    fn everything_is_taken_once_in_the_order_of_its_tenant_and_within_the_budget(
        jobs in arrivals(), idle in 1..5_usize, items in 1..20_usize, cost in 1..2000_usize,
    ) {
        let mut queue = Queue::default();
        for (number, (tenant, is_batch, cost)) in jobs.iter().enumerate() {
            push(&mut queue, (*tenant, priority(*is_batch), *cost, number));
        }
        let mut last = HashMap::new();
        let mut taken = 0;
        while queue.waiting().0 > 0 {
            let batch = queue.take(idle, Budget { items, cost });
            prop_assert!(!batch.is_empty() && batch.len() <= items);
            prop_assert!(batch.len() == 1 || batch.iter().map(|job| job.2).sum::<usize>() <= cost);
            prop_assert!(batch.iter().all(|job| job.1 == batch[0].1), "a batch is of one priority");
            for (tenant, priority, _, number) in batch {
                taken += 1;
                let before = last.insert((tenant, priority == Priority::Batch), number);
                prop_assert!(before.is_none_or(|before| before < number));
            }
        }
        prop_assert_eq!((taken, queue.waiting()), (jobs.len(), (0, 0)));
    }

    #[test]
    fn tenants_that_always_wait_are_given_the_same_but_for_one_job_each(
        costs in prop::collection::vec((1..300_usize, 1..300_usize), 50..150),
    ) {
        // One asks in large pieces, one in small ones, and each has far more than is done.
        let mut queue = Queue::default();
        let (mut given, mut largest) = ([0_usize; 2], [0_usize; 2]);
        for (number, (one, other)) in costs.iter().enumerate() {
            push(&mut queue, (0, Priority::Interactive, *one, number));
            push(&mut queue, (1, Priority::Interactive, *other, number));
            largest = [largest[0].max(*one), largest[1].max(*other)];
        }
        for _ in 0..costs.len() {
            for (tenant, _, cost, _) in queue.take(1, Budget { items: 1, cost: 1 }) {
                given[tenant] += cost;
            }
            if queue.interactive.flows.len() < 2 {
                break;
            }
            prop_assert!(given[0].abs_diff(given[1]) <= largest[0] + largest[1], "{given:?}");
        }
    }

    #[test]
    fn batch_work_has_its_share_and_no_more_while_interactive_work_waits(
        interactive in prop::collection::vec(1..50_usize, 400), batch in prop::collection::vec(1..50_usize, 100),
    ) {
        let mut queue = Queue::default();
        for (number, cost) in interactive.iter().enumerate() {
            push(&mut queue, (0, Priority::Interactive, *cost, number));
        }
        for (number, cost) in batch.iter().enumerate() {
            push(&mut queue, (1, Priority::Batch, *cost, number));
        }
        let mut given = [0_usize; 2];
        while queue.interactive.items > 0 && queue.batch.items > 0 {
            for (tenant, _, cost, _) in queue.take(1, WIDE) {
                given[tenant] += cost;
            }
            // One batch of interactive work may go before it is noticed that the share is due.
            prop_assert!(given[1] * (BATCH_SHARE - 1) <= given[0], "{given:?}");
            prop_assert!(given[0] <= (given[1] + 50) * (BATCH_SHARE - 1) + WIDE.cost, "{given:?}");
        }
    }

    #[test]
    fn what_is_ahead_is_what_is_done_first(jobs in arrivals(), own in 0..5_usize, is_batch in any::<bool>(), cost in 1..400_usize) {
        let mut queue = Queue::default();
        for (number, (tenant, is_batch, cost)) in jobs.iter().enumerate() {
            push(&mut queue, (*tenant, priority(*is_batch), *cost, number));
        }
        let ahead = queue.ahead(priority(is_batch), &tenant(own), cost);
        push(&mut queue, (own, priority(is_batch), cost, usize::MAX));
        let mut done = 0;
        'taking: loop {
            for (_, _, cost, number) in queue.take(1, Budget { items: 1, cost: 1 }) {
                if number == usize::MAX {
                    break 'taking;
                }
                done += cost;
            }
        }
        // Each other tenant, and the other priority, is off by at most one job or its share of one.
        let slack = 400 * 6 * if is_batch { BATCH_SHARE } else { 2 };
        prop_assert!(done.abs_diff(ahead) <= slack, "{done} done, {ahead} told");
    }

    #[test]
    fn room_is_made_by_whole_calls_of_those_who_have_most_or_not_at_all(
        calls in prop::collection::vec((0..4_usize, any::<bool>(), 1..6_usize), 1..40), items in 1..6_usize, is_batch in any::<bool>(),
    ) {
        let mut queue = Queue::default();
        let mut sizes = HashMap::new();
        for (call, (tenant, is_batch, size)) in calls.iter().enumerate() {
            let jobs = (0..*size).map(|number| ((*tenant, priority(*is_batch), call, number), 1));
            queue.push(priority(*is_batch), &self::tenant(*tenant), jobs);
            sizes.insert(call, *size);
        }
        let before: usize = sizes.values().sum();
        let own = queue.lane(priority(is_batch)).flows.get(&tenant(0)).map_or(0, |flow| flow.jobs.len());
        match queue.make_room(priority(is_batch), &tenant(0), items, before) {
            None => prop_assert_eq!(queue.waiting(), (before, before)),
            Some(out) => {
                prop_assert!(queue.waiting().0 + items <= before);
                prop_assert_eq!(queue.waiting().0 + out.len(), before);
                let mut gone: HashMap<usize, usize> = HashMap::new();
                for (tenant, lane, call, _) in &out {
                    *gone.entry(*call).or_default() += 1;
                    let left = queue.lane(*lane).flows.get(&self::tenant(*tenant)).map_or(0, |flow| flow.jobs.len());
                    let is_lower = !is_batch && *lane == Priority::Batch;
                    prop_assert!(is_lower || (*tenant != 0 && left >= own + items));
                }
                prop_assert!(gone.iter().all(|(call, count)| sizes[call] == *count), "calls go whole");
            }
        }
    }

    #[test]
    fn counts_stay_right_whatever_is_removed(jobs in arrivals(), keep in prop::collection::vec(any::<bool>(), 200)) {
        let mut queue = Queue::default();
        for (number, (tenant, is_batch, cost)) in jobs.iter().enumerate() {
            push(&mut queue, (*tenant, priority(*is_batch), *cost, number));
        }
        queue.retain(|job| keep[job.3].then_some(job));
        let kept: Vec<_> = jobs.iter().zip(&keep).filter(|(_, keep)| **keep).map(|(job, _)| job.2).collect();
        prop_assert_eq!(queue.waiting(), (kept.len(), kept.iter().sum()));
        let mut taken = 0;
        while queue.waiting().0 > 0 {
            taken += queue.take(2, WIDE).len();
        }
        prop_assert_eq!(taken, kept.len());
    }
}

#[test]
fn a_tenant_that_comes_back_at_once_does_not_get_ahead_of_those_who_wait() {
    let mut queue = Queue::default();
    for number in 0..100 {
        push(&mut queue, (1, Priority::Interactive, 1, number));
    }
    // Tenant 0 always has one job waiting, ten times as large.
    let mut given = [0_usize; 2];
    push(&mut queue, (0, Priority::Interactive, 10, 0));
    for _ in 0..60 {
        let (tenant, _, cost, _) = queue.take(1, Budget { items: 1, cost: 1 }).remove(0);
        given[tenant] += cost;
        if tenant == 0 {
            push(&mut queue, (0, Priority::Interactive, 10, 0));
        }
    }
    assert!(given[0].abs_diff(given[1]) <= 11, "{given:?}");
}

#[test]
fn shadow_work_is_taken_by_those_who_ask_for_it_alone() {
    let mut queue = Queue::default();
    push(&mut queue, (0, Priority::Shadow, 1, 0));
    assert_eq!((queue.waiting(), queue.items(Priority::Shadow)), ((0, 0), 1));
    assert!(queue.take(1, WIDE).is_empty());
    assert_eq!(queue.take_shadow(WIDE).len(), 1);
}

#[test]
fn what_is_remembered_of_tenants_is_bounded() {
    let mut queue = Queue::default();
    push(&mut queue, (usize::MAX, Priority::Interactive, 1_000_000, 0));
    push(&mut queue, (usize::MAX, Priority::Interactive, 1_000_000, 0));
    for number in 0..3 * REMEMBERED {
        push(&mut queue, (number, Priority::Interactive, 5, number));
        queue.take(1, Budget { items: 1, cost: 1 });
    }
    assert!(queue.interactive.ahead.len() <= REMEMBERED);
}
