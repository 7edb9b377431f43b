//! REST and gRPC are two doors of one house: whoever writes through either, both show the same, and both refuse the same.
//!
//! A seeded sequence of operations, good and bad, goes through one door or the other; after each step the whole store is
//! read through both. What is refused wrote nothing, so it is tried through the other door too: the class must be the same.

mod operations;
mod rolls;
mod views;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::operations::{Known, Op};
use crate::world::World;

/// Operations of one sequence.
const STEPS: usize = 120;

async fn both_doors_show_the_same(world: &World, seed: u64) {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut known = Known::default();
    let mut refused = 0;
    for step in 0..STEPS {
        let op = Op::any(&mut dice, &known);
        let by_rest = dice.random_bool(0.5);
        let at = format!("seed {seed}, step {step}, {} first: {op:?}", if by_rest { "REST" } else { "gRPC" });
        let first = if by_rest { op.by_rest(world).await } else { op.by_grpc(world).await };
        match first {
            Ok(made) => known.learn(&op, made),
            Err(class) => {
                refused += 1;
                let second = if by_rest { op.by_grpc(world).await } else { op.by_rest(world).await };
                match second {
                    Ok(made) if op.mlflow_is_lenient() && !by_rest => known.learn(&op, made),
                    other => assert_eq!(other, Err(class), "{at}"),
                }
            }
        }
        let (rest, grpc) = (views::by_rest(world).await, views::by_grpc(world).await);
        assert_eq!(rest, grpc, "{at}");
        let search = rolls::any_search(&mut dice);
        assert_eq!(search.by_rest(world).await, search.by_grpc(world).await, "{search:?} after {at}");
    }
    // A sequence that is always right or always wrong would show little.
    assert!((STEPS / 10..STEPS * 9 / 10).contains(&refused), "{refused} of {STEPS} were refused");
}

macro_rules! seeds {
    ($world:expr; $($name:ident: $seed:expr),+) => { $(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let world = $world.await;
            super::both_doors_show_the_same(&world, $seed).await;
            world.stop().await;
        }
    )+ };
}

mod embedded {
    use super::World;
    seeds!(World::embedded(); first_sequence: 1, second_sequence: 2, third_sequence: 3, fourth_sequence: 4);
}

mod live {
    use super::World;
    seeds!(World::production(); first_sequence: 1, second_sequence: 2, third_sequence: 3);
}
