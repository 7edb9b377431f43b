use std::sync::{
    atomic::{AtomicUsize, Ordering},
    mpsc,
};

use super::*;
use crate::answers::{AnswerCache, put};

fn limits(queue: usize, workers: usize) -> Limits {
    Limits { budget: Budget { items: 8, cost: 100 }, queue, workers, delay: Duration::ZERO }
}

/// Doubles numbers; panics at 13; each batch waits for one message of the gate.
fn gated(limits: Limits) -> (Batcher<u32, u32>, mpsc::Sender<()>) {
    let (open, gate) = mpsc::channel();
    let gate = Mutex::new(gate);
    let batcher = Batcher::start(limits, ModelMeters::new("gate", 1), move |items: &[&u32]| {
        let _closed = gate.lock().recv();
        assert!(!items.contains(&&13), "thirteen");
        items.iter().map(|item| **item * 2).collect()
    });
    (batcher.unwrap(), open)
}

/// Gives the only worker something to do, and waits until it has begun.
async fn busy(batcher: &Batcher<u32, u32>) -> Ticket<u32> {
    let ticket = batcher.submit(vec![(1, 1)], None).unwrap().remove(0);
    while batcher.shared.state.lock().waiting.waiting().0 > 0 {
        tokio::task::yield_now().await;
    }
    ticket
}

fn free(workers: usize) -> Batcher<u32, u32> {
    gated(limits(1024, workers)).0
}

fn of(tenant: &str, priority: Priority) -> Admission {
    Admission { tenant: tenant.into(), priority, deadline: None }
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_millis(5))
}

async fn past(deadline: Option<Instant>) {
    tokio::time::sleep_until(deadline.unwrap().into()).await;
}

#[tokio::test]
async fn every_item_gets_its_own_answer_in_order() {
    let batcher = free(2);
    let tickets = batcher.submit((0..100).map(|n| (n, 1)).collect(), None).unwrap();
    for (n, ticket) in tickets.into_iter().enumerate() {
        let answer = ticket.await.unwrap();
        if n == 13 {
            assert_eq!(answer.unwrap_err(), Failure::Panicked);
        } else {
            assert_eq!(answer.unwrap().output as usize, n * 2);
        }
    }
}

#[tokio::test]
async fn a_full_queue_refuses_all_or_nothing() {
    let (batcher, open) = gated(limits(4, 1));
    let running = vec![busy(&batcher).await];
    let waiting = batcher.submit(vec![(2, 1), (3, 1), (4, 1)], None).unwrap();
    let Err(Refused::Full { retry_after }) = batcher.submit(vec![(5, 1), (6, 1)], None) else { panic!("refused") };
    assert!(retry_after >= Duration::from_millis(50));
    let last = batcher.submit(vec![(7, 1)], None).unwrap();
    drop(open);
    for ticket in running.into_iter().chain(waiting).chain(last) {
        assert!(ticket.await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn jobs_nobody_waits_for_do_not_keep_the_queue_full() {
    let (batcher, open) = gated(limits(4, 1));
    let running = busy(&batcher).await;
    let deadline = soon();
    let expired = batcher.submit(vec![(2, 10)], deadline).unwrap().remove(0);
    drop(batcher.submit(vec![(3, 10)], None).unwrap());
    let waiting = batcher.submit(vec![(4, 1), (5, 1)], None).unwrap();
    past(deadline).await;
    let last = batcher.submit(vec![(6, 1), (7, 1)], None).unwrap();
    assert_eq!(batcher.shared.state.lock().waiting.waiting(), (4, 4));
    assert_eq!(expired.await.unwrap().unwrap_err(), Failure::Expired);
    batcher.submit(vec![(8, 1)], None).unwrap_err();
    drop(open);
    for ticket in [running].into_iter().chain(waiting).chain(last) {
        assert!(ticket.await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn what_arrives_while_the_worker_is_busy_makes_one_batch() {
    let (batcher, open) = gated(limits(64, 1));
    let first = busy(&batcher).await;
    let later: Vec<_> = (0..5).map(|n| batcher.submit(vec![(n, 1)], None).unwrap().remove(0)).collect();
    drop(open);
    assert_eq!(first.await.unwrap().unwrap().batch, 1);
    for ticket in later {
        assert_eq!(ticket.await.unwrap().unwrap().batch, 5);
    }
}

#[tokio::test]
async fn a_delay_lets_a_batch_fill_up_and_no_longer() {
    let delay = Duration::from_millis(200);
    let (batcher, open) = gated(Limits { delay, ..limits(64, 1) });
    drop(open);
    let begun = Instant::now();
    let few: Vec<_> = (0..3).map(|n| batcher.submit(vec![(n, 1)], None).unwrap().remove(0)).collect();
    for ticket in few {
        let done = ticket.await.unwrap().unwrap();
        assert_eq!(done.batch, 3);
        assert!(done.started.duration_since(begun) >= delay - Duration::from_millis(10));
    }
    let begun = Instant::now();
    for ticket in batcher.submit((20..28).map(|n| (n, 1)).collect(), None).unwrap() {
        assert_eq!(ticket.await.unwrap().unwrap().batch, 8);
    }
    assert!(begun.elapsed() < delay, "a full batch does not wait");
}

#[tokio::test]
async fn expired_and_withdrawn_jobs_are_not_computed() {
    let (batcher, open) = gated(limits(64, 1));
    let running = busy(&batcher).await;
    let deadline = soon();
    let expired = batcher.submit(vec![(13, 1)], deadline).unwrap().remove(0);
    // Would share a batch with the last one, where 13 would break it.
    drop(batcher.submit(vec![(5, 1)], None).unwrap());
    let last = batcher.submit(vec![(2, 1)], None).unwrap().remove(0);
    past(deadline).await;
    assert_eq!(batcher.submit(vec![(2, 1)], deadline).unwrap_err(), Refused::Expired);
    drop(open);
    assert!(running.await.unwrap().is_ok());
    assert_eq!(expired.await.unwrap().unwrap_err(), Failure::Expired);
    assert_eq!(last.await.unwrap().unwrap().batch, 1);
}

/// A model that takes half a millisecond for each item, under three times what it can do, with deadlines.
#[tokio::test(flavor = "multi_thread")]
async fn of_ten_thousand_jobs_with_deadlines_no_expired_one_is_computed() {
    let computed = Arc::new(Mutex::new(Vec::new()));
    let seen = computed.clone();
    let limits = Limits { budget: Budget { items: 4, cost: 100 }, ..limits(1024, 2) };
    let batcher = Batcher::start(limits, ModelMeters::new("slow", 1), move |items: &[&usize]| {
        seen.lock().extend(items.iter().map(|item| **item));
        thread::sleep(Duration::from_micros(500) * items.len() as u32);
        vec![(); items.len()]
    });
    let batcher = Arc::new(batcher.unwrap());
    let mut waiting = Vec::new();
    let (mut refused, mut withdrawn) = (Vec::new(), Vec::new());
    for n in 0..10_000_usize {
        let deadline = Instant::now() + Duration::from_millis(2 + n as u64 * 7 % 60);
        match batcher.submit(vec![(n, 1)], Some(deadline)) {
            Ok(mut tickets) if n % 10 == 0 => {
                // A caller that leaves; the worker may have been faster.
                drop(tickets.remove(0));
                withdrawn.push(n);
            }
            Ok(mut tickets) => waiting.push((n, deadline, tickets.remove(0))),
            Err(_) => refused.push(n),
        }
        if n % 12 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let (mut done, mut expired) = (Vec::new(), Vec::new());
    for (n, deadline, ticket) in waiting {
        match ticket.await.unwrap() {
            Ok(answer) => {
                assert!(answer.started < deadline);
                done.push(n);
            }
            Err(failure) => {
                assert_eq!(failure, Failure::Expired);
                expired.push(n);
            }
        }
    }
    let computed = computed.lock().clone();
    assert!(refused.iter().chain(&expired).all(|n| !computed.contains(n)), "an expired job was computed");
    assert!(done.iter().all(|n| computed.contains(n)));
    assert!(computed.len() <= done.len() + withdrawn.len());
    assert!(!refused.is_empty() && done.len() > 500, "{} done, {} refused", done.len(), refused.len());
}

#[tokio::test]
async fn what_cannot_end_in_time_is_refused_at_once() {
    let batcher = Batcher::start(limits(1024, 1), ModelMeters::new("slow", 1), |items: &[&u32]| {
        thread::sleep(Duration::from_millis(10) * items.len() as u32);
        vec![0; items.len()]
    });
    let batcher = batcher.unwrap();
    for ticket in batcher.submit(vec![(1, 1); 8], None).unwrap() {
        ticket.await.unwrap().unwrap();
    }
    let waiting = batcher.submit(vec![(1, 1); 50], None).unwrap();
    let within = |millis| Some(Instant::now() + Duration::from_millis(millis));
    let begun = Instant::now();
    // Of another tenant: it would be second in turn, whatever the first has waiting.
    let Err(Refused::TooLate { needed }) = batcher.submit(vec![(2, 1); 20], within(100)) else { panic!("refused") };
    assert!(needed > Duration::from_millis(400) && needed < Duration::from_secs(2), "{needed:?}");
    assert!(begun.elapsed() < Duration::from_millis(20), "at once");
    let other = Admission { tenant: "other".into(), deadline: within(300), ..Admission::default() };
    let done = batcher.submit(vec![(2, 1)], other).unwrap().remove(0).await.unwrap();
    assert!(done.is_ok());
    // Those who left are in nobody's way.
    drop(waiting);
    batcher.submit(vec![(2, 1); 10], within(400)).unwrap();
}

#[tokio::test]
async fn interactive_work_goes_first_and_batch_work_does_not_starve() {
    let (batcher, open) = gated(Limits { budget: Budget { items: 1, cost: 1 }, ..limits(4096, 1) });
    let running = busy(&batcher).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut waiting = Vec::new();
    for (priority, count) in [(Priority::Batch, 10_u32), (Priority::Interactive, 300)] {
        for ticket in batcher.submit((0..count).map(|n| (n + 20, 1)).collect(), of("", priority)).unwrap() {
            let order = order.clone();
            waiting.push(tokio::spawn(async move {
                let done = ticket.await.unwrap().unwrap();
                order.lock().push((done.started, priority));
            }));
        }
    }
    drop(open);
    running.await.unwrap().unwrap();
    futures::future::join_all(waiting).await;
    order.lock().sort();
    let places: Vec<_> =
        order.lock().iter().enumerate().filter(|(_, job)| job.1 == Priority::Batch).map(|job| job.0).collect();
    let every: Vec<_> = places.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(places[0] >= 14 && every.iter().all(|steps| *steps == crate::queue::BATCH_SHARE), "{places:?}");
}

#[tokio::test]
async fn no_tenant_starves_beside_one_that_floods() {
    let (batcher, open) = gated(Limits { budget: Budget { items: 1, cost: 1 }, ..limits(100, 1) });
    let running = busy(&batcher).await;
    let mut flood: Vec<_> = (0..100)
        .map(|n| batcher.submit(vec![(n + 20, 1)], of("flood", Priority::Interactive)).unwrap().remove(0))
        .collect();
    // The queue is full: the flood makes room, and is refused itself.
    let small: Vec<_> = (0..5)
        .map(|n| batcher.submit(vec![(n + 20, 1)], of("small", Priority::Interactive)).unwrap().remove(0))
        .collect();
    assert!(matches!(batcher.submit(vec![(20, 1)], of("flood", Priority::Interactive)), Err(Refused::Full { .. })));
    for ticket in flood.split_off(95) {
        assert!(matches!(ticket.await.unwrap().unwrap_err(), Failure::PushedOut(_)));
    }
    drop(open);
    running.await.unwrap().unwrap();
    let mut last = Vec::new();
    for ticket in small {
        last.push(ticket.await.unwrap().unwrap().started);
    }
    let mut before = 0;
    for ticket in flood {
        before += usize::from(ticket.await.unwrap().unwrap().started < last[4]);
    }
    assert!(before <= 6, "{before} of the flood went before the five of the small tenant");
}

#[tokio::test]
async fn a_call_that_is_cancelled_frees_its_slots() {
    let (batcher, open) = gated(limits(4, 1));
    let running = busy(&batcher).await;
    let waiting = batcher.submit(vec![(2, 1); 4], None).unwrap();
    assert!(matches!(batcher.submit(vec![(3, 1); 4], None), Err(Refused::Full { .. })));
    drop(waiting);
    let next = batcher.submit(vec![(3, 1); 4], None).unwrap();
    drop(open);
    running.await.unwrap().unwrap();
    for ticket in next {
        assert_eq!(ticket.await.unwrap().unwrap().output, 6);
    }
}

#[tokio::test]
async fn shadow_work_runs_beside_the_workers_and_never_fills_their_queue() {
    let (batcher, open) = gated(limits(4, 1));
    let running = busy(&batcher).await;
    let shadow = batcher.submit(vec![(2, 1); 4], of("", Priority::Shadow)).unwrap();
    // The spare worker has taken some of them; fill up what it left.
    while batcher.shared.state.lock().waiting.items(Priority::Shadow) > 0 {
        tokio::task::yield_now().await;
    }
    let more = batcher.submit(vec![(2, 1); 4], of("", Priority::Shadow)).unwrap();
    assert!(matches!(batcher.submit(vec![(2, 1)], of("", Priority::Shadow)), Err(Refused::Full { .. })));
    let waiting = batcher.submit(vec![(3, 1); 4], None).unwrap();
    drop(open);
    running.await.unwrap().unwrap();
    for ticket in shadow.into_iter().chain(more).chain(waiting) {
        ticket.await.unwrap().unwrap();
    }
    assert!(batcher.shared.state.lock().rate.estimate(0, 1, 1, false, Instant::now()).is_some());
}

#[tokio::test]
async fn what_was_computed_once_is_answered_from_the_cache() {
    let computed = Arc::new(AtomicUsize::new(0));
    let count = computed.clone();
    let cache = AnswerCache::new(1 << 20).unwrap();
    let answers = cache.scope("sha256:m", "double").of::<u32, f32>(|item, hash| put(hash, &item.to_le_bytes()));
    let compute = move |items: &[&u32]| {
        count.fetch_add(items.len(), Ordering::SeqCst);
        items.iter().map(|item| **item as f32 * 2.0).collect()
    };
    let batcher = Batcher::start_cached(limits(64, 1), ModelMeters::new("cached", 1), Some(answers), compute).unwrap();
    let ask = async |items: &[u32], admission: Admission| {
        let items = items.iter().map(|item| (*item, 1)).collect();
        let mut answers = Vec::new();
        for ticket in batcher.submit(items, admission).unwrap() {
            let done = ticket.await.unwrap().unwrap();
            answers.push((done.output, done.is_cached));
        }
        answers
    };
    let acme = || of("acme", Priority::Interactive);
    assert_eq!(ask(&[1, 2], acme()).await, [(2.0, false), (4.0, false)]);
    assert_eq!(ask(&[2, 3], acme()).await, [(4.0, true), (6.0, false)]);
    assert_eq!(computed.load(Ordering::SeqCst), 3);
    assert_eq!(ask(&[2], of("other", Priority::Interactive)).await, [(4.0, false)]);
    assert_eq!(ask(&[2], of("acme", Priority::Shadow)).await, [(4.0, false)]);
}

#[tokio::test]
async fn dropping_the_queue_lets_what_waits_finish() {
    let (batcher, open) = gated(limits(64, 2));
    let tickets = batcher.submit((0..20).map(|n| (n + 20, 1)).collect(), None).unwrap();
    drop(batcher);
    drop(open);
    for ticket in tickets {
        assert!(ticket.await.unwrap().is_ok());
    }
}
