//! What a filter selects, on real databases: the same as an evaluation of its own, written here, over what is there.
//!
//! Conditions are rolled with their right sides from texts that SQL, LIKE and the grammar have a meaning for; each is
//! written in one of the ways the grammar allows. An answer is 200 or MLflow's refusal, never a failure of the server.

mod evaluation;
mod grammar;
mod store;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use self::grammar::{Condition, Subject};
use crate::world::World;

/// Filters for each subject.
const ROLLS: usize = 250;

async fn a_filter_selects_what_it_says(world: &World) {
    store::fill(world).await;
    let mut dice = StdRng::seed_from_u64(7);
    for subject in Subject::ALL {
        let everything = subject.search(world, "").await.unwrap();
        assert!(everything.len() >= 5, "{subject:?}: {everything:?}");
        let (mut selected, mut refused) = (0, 0);
        for _ in 0..ROLLS {
            let conditions: Vec<Condition> =
                (0..dice.random_range(1..4)).map(|_| Condition::any(&mut dice, subject, &everything)).collect();
            let text = grammar::written(&mut dice, &conditions, subject == Subject::LoggedModels);
            let found = subject.search(world, &text).await;
            if conditions.iter().any(|condition| !condition.is_allowed(subject)) {
                refused += 1;
                assert_eq!(found, Err("INVALID_PARAMETER_VALUE".to_owned()), "{subject:?}: {text:.500}");
                continue;
            }
            let holds = |item: &&Value| conditions.iter().all(|condition| evaluation::holds(subject, condition, item));
            let wanted: Vec<Value> = everything.iter().filter(holds).cloned().collect();
            selected += usize::from(!wanted.is_empty());
            assert_eq!(found.as_ref(), Ok(&wanted), "{subject:?}: {text:.500}\n{conditions:?}");
        }
        assert!(selected > ROLLS / 10 && refused > ROLLS / 20, "{subject:?}: {selected} selected, {refused} refused");
    }
}

async fn a_filter_that_was_damaged_is_read_or_refused(world: &World) {
    store::fill(world).await;
    let mut dice = StdRng::seed_from_u64(8);
    for subject in Subject::ALL {
        let everything = subject.search(world, "").await.unwrap();
        for _ in 0..ROLLS {
            let conditions = [Condition::any(&mut dice, subject, &everything)];
            let mut text: Vec<char> =
                grammar::written(&mut dice, &conditions, subject == Subject::LoggedModels).chars().collect();
            for _ in 0..dice.random_range(1..4) {
                let at = dice.random_range(0..=text.len());
                let scrap = *[
                    "'", "\"", "`", "--", "/*", ";", "%", "\\", "(", ")", "\0", "\u{1}", " OR 1=1 ", "𝄞", "$1", "?",
                    "NULL",
                ]
                .choose(&mut dice)
                .unwrap();
                text.splice(at..at, scrap.chars());
            }
            let text = String::from_iter(text);
            if let Err(code) = subject.search(world, &text).await {
                assert_eq!(code, "INVALID_PARAMETER_VALUE", "{subject:?}: {text:.500}");
            }
        }
    }
}

async fn a_filter_has_limits_and_none_fails_the_server(world: &World) {
    store::fill(world).await;
    let list = |count: usize| vec!["''"; count].join(",");
    let and = |count: usize| vec!["tags.k != 'x'"; count].join(" AND ");
    let refused = Err("INVALID_PARAMETER_VALUE".to_owned());
    let (once, often) = (Subject::Runs.search(world, &and(1)).await, Subject::Runs.search(world, &and(200)).await);
    assert!(once.as_ref().is_ok_and(|found| found.len() > 3) && once == often, "said 200 times it selects the same");
    let runs = Subject::Runs;
    for (filter, is_read) in [
        (format!("tags.k LIKE '{}'", "%".repeat(10_000)), true),
        (format!("tags.k ILIKE '{}'", "a_".repeat(5_000)), true),
        (format!("tags.k LIKE '{}'", "%a".repeat(20_000)), true),
        (format!("tags.k LIKE '{}'", "x".repeat(60_000)), false),
        (format!("tags.k = '{}'", "x".repeat(90_000)), true),
        (format!("tags.k = '{}'", "x".repeat(100_000)), false),
        (format!("tags.`{}` = 'x'", "k".repeat(10_000)), true),
        (format!("run_id IN ({})", list(10_000)), true),
        (format!("run_id IN ({})", list(10_001)), false),
        (format!("run_id IN ({}) AND run_id NOT IN ({})", list(6_000), list(6_000)), false),
        (and(201), false),
        (format!("{}tags.k = 'x'{}", "(".repeat(10_000), ")".repeat(10_000)), false),
        ("metrics.k > 1e999".to_owned(), true),
        ("metrics.k > -1e999 AND start_time < 99999999999999999999".to_owned(), true),
        ("start_time < 1e400".to_owned(), true),
    ] {
        let found = runs.search(world, &filter).await;
        assert!(if is_read { found.is_ok() } else { found == refused }, "{filter:.80}: {:?}", found.err());
    }
}

macro_rules! on_both {
    ($($case:ident),+ $(,)?) => {
        mod embedded {
            use super::World;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let world = World::embedded().await;
                super::$case(&world).await;
                world.stop().await;
            })+
        }
        mod live {
            use super::World;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let world = World::production().await;
                super::$case(&world).await;
                world.stop().await;
            })+
        }
    };
}

on_both!(
    a_filter_selects_what_it_says,
    a_filter_that_was_damaged_is_read_or_refused,
    a_filter_has_limits_and_none_fails_the_server,
);
