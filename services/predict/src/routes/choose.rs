//! Which of several targets takes a call.

use sha2::{Digest, Sha256};

/// Picks one of `targets`, each a name with its weight, so that each is picked as often as its weight says; `None` where
/// no weight is above 0.
///
/// With a `key` equal keys pick the same target, here, after a restart and in other processes, by weighted rendezvous
/// hashing: the greatest −weight ⁄ ln(hash) wins. A weight that changes moves only the keys that must move. Without one
/// `chance`, uniform in [0, 1), decides.
pub fn pick<'a>(
    route: &str,
    targets: impl Iterator<Item = (&'a str, f64)> + Clone,
    key: Option<&str>,
    chance: impl FnOnce() -> f64,
) -> Option<usize> {
    let weighted = targets.enumerate().filter(|(_, (_, weight))| *weight > 0.0);
    let Some(key) = key else {
        let sum: f64 = weighted.clone().map(|(_, (_, weight))| weight).sum();
        let mut left = chance() * sum;
        let mut last = None;
        for (index, (_, weight)) in weighted {
            last = Some(index);
            if left < weight {
                break;
            }
            left -= weight;
        }
        return last;
    };
    let scored = weighted.map(|(index, (name, weight))| (index, -weight / uniform(route, name, key).ln()));
    scored.max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(index, _)| index)
}

/// Hashes to a number between 0 and 1, neither of them.
#[expect(clippy::cast_precision_loss, reason = "52 bits are kept, which an f64 holds")]
fn uniform(route: &str, name: &str, key: &str) -> f64 {
    let mut hash = Sha256::new();
    for part in [route, name, key] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    ((u64::from_le_bytes(bytes) >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(weights: &[f64], key: impl Fn(usize) -> Option<String>) -> Vec<f64> {
        let names: Vec<_> = (0..weights.len()).map(|index| format!("m/{index}")).collect();
        let targets = names.iter().map(String::as_str).zip(weights.iter().copied());
        let mut counts = vec![0.0; weights.len()];
        let calls = 20_000;
        for call in 0..calls {
            let picked = pick("r", targets.clone(), key(call).as_deref(), rand::random);
            counts[picked.unwrap()] += 1.0 / calls as f64;
        }
        counts
    }

    #[test]
    fn each_is_picked_as_often_as_its_weight_says() {
        for weights in [vec![0.9, 0.1], vec![0.5, 0.2, 0.3], vec![0.0, 1.0]] {
            let by_key = shares(&weights, |call| Some(format!("customer-{call}")));
            let by_chance = shares(&weights, |_| None);
            for ((weight, by_key), by_chance) in weights.iter().zip(by_key).zip(by_chance) {
                // Five standard errors of 20 000 calls.
                let most = 5.0 * (weight * (1.0 - weight) / 20_000.0).sqrt() + 1e-9;
                assert!((by_key - weight).abs() <= most && (by_chance - weight).abs() <= most, "{weights:?}");
            }
        }
        assert_eq!(pick("r", [("a", 0.0)].into_iter(), None, || 0.5), None);
    }

    #[test]
    fn a_key_stays_and_a_weight_that_changes_moves_no_other_keys() {
        let before = [("a", 0.8), ("b", 0.1), ("c", 0.1)];
        let after = [("a", 0.7), ("b", 0.2), ("c", 0.1)];
        let mut moved = 0;
        for key in (0..5000).map(|key| key.to_string()) {
            let first = pick("r", before.into_iter(), Some(&key), rand::random).unwrap();
            assert_eq!(pick("r", before.into_iter(), Some(&key), rand::random), Some(first));
            let then = pick("r", after.into_iter(), Some(&key), rand::random).unwrap();
            if first != then {
                assert_ne!(first, 1, "nobody leaves the target that grew");
                assert_ne!(then, 0, "nobody comes to the target that shrank");
                moved += 1;
            }
        }
        assert!((300..900).contains(&moved), "{moved} of 5000");
    }
}
