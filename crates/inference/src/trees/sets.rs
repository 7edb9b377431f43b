//! Tests that ask whether a value is one of several: categorical splits.

/// A set of values, and whether a missing value counts as one of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Set {
    pub(super) members: Members,
    /// Where NaN belongs.
    pub(super) missing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Members {
    /// Category codes, as bits. A value is cut to its whole part first.
    Codes {
        bits: Vec<u64>,
        /// Whether −0.5 is category 0 (LightGBM cuts first) or none (XGBoost looks at the sign first).
        cut_negative: bool,
    },
    /// Exact values, as the bits of positive and negative `f32` without −0, sorted.
    Values(Vec<u32>),
}

impl Set {
    pub(super) fn contains(&self, value: f32) -> bool {
        if value.is_nan() { self.missing } else { self.members.contains(value) }
    }
}

impl Members {
    /// Makes a set of exact values; NaN is no value.
    pub(super) fn values(values: impl IntoIterator<Item = f32>) -> Self {
        let mut values: Vec<u32> = values.into_iter().filter(|value| !value.is_nan()).map(exact).collect();
        values.sort_unstable();
        values.dedup();
        Self::Values(values)
    }

    fn contains(&self, value: f32) -> bool {
        match self {
            Self::Codes { bits, cut_negative } => code(value, *cut_negative)
                .is_some_and(|code| bits.get((code / 64) as usize).is_some_and(|word| word >> (code % 64) & 1 == 1)),
            Self::Values(values) => values.binary_search(&exact(value)).is_ok(),
        }
    }
}

/// The category a value stands for; `None` where it stands for none.
pub(super) fn code(value: f32, cut_negative: bool) -> Option<u32> {
    let lowest_is_open = if cut_negative { value > -1.0 } else { value >= 0.0 };
    // Larger codes than this have gaps between neighbouring numbers; XGBoost stops at the same place.
    (lowest_is_open && value < 16_777_216.0).then_some(value as i32 as u32)
}

/// The bits of a number; zero has one form.
fn exact(value: f32) -> u32 {
    (value + 0.0).to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_cut_and_bounded() {
        let set = |cut_negative| Members::Codes { bits: vec![1 | 1 << 5, 1 << 6], cut_negative };
        for (value, xgboost, lightgbm) in [
            (0.0, true, true),
            (-0.0, true, true),
            (0.9, true, true),
            (-0.5, false, true),
            (-1.0, false, false),
            (5.7, true, true),
            (6.0, false, false),
            (70.0, true, true),
            (128.0, false, false),
            (3e38, false, false),
            (f32::INFINITY, false, false),
            (f32::NEG_INFINITY, false, false),
        ] {
            assert_eq!(set(false).contains(value), xgboost, "{value}");
            assert_eq!(set(true).contains(value), lightgbm, "{value}");
        }
    }

    #[test]
    fn exact_values_are_not_cut_and_missing_is_a_choice() {
        let members = Members::values([2.0, -3.5, 0.0, f32::NAN]);
        for (value, inside) in [(2.0, true), (2.5, false), (-3.5, true), (-0.0, true), (f32::INFINITY, false)] {
            assert_eq!(members.contains(value), inside, "{value}");
        }
        assert!(!Set { members: members.clone(), missing: false }.contains(f32::NAN));
        assert!(Set { members, missing: true }.contains(f32::NAN));
    }
}
