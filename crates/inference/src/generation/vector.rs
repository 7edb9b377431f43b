//! Element-wise arithmetic on `f32` slices, compiled for each vector width and chosen at run time.
//!
//! Sums run in sixteen fixed lanes on every processor, so results do not depend on the width.

const LANES: usize = 16;

/// What the processor offers, from best to least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Avx512Vnni,
    Avx2,
    Portable,
}

impl Level {
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let has_avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            if has_avx2 && has_avx512 {
                return Self::Avx512Vnni;
            }
            if has_avx2 {
                return Self::Avx2;
            }
        }
        Self::Portable
    }
}

/// Defines a function once and compiles it for every level; the call picks the best the processor has.
macro_rules! vectorised {
    ($(#[$meta:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        pub(super) fn $name($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body($($argument: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
            fn avx512($($argument: $type),*) $(-> $result)? { body($($argument),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($argument: $type),*) $(-> $result)? { body($($argument),*) }
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "a function compiled for wider vectors is called after asking the processor")]
            match Level::detect() {
                // SAFETY: the processor has the features the function is compiled for.
                Level::Avx512Vnni => return unsafe { avx512($($argument),*) },
                // SAFETY: as above.
                Level::Avx2 => return unsafe { avx2($($argument),*) },
                Level::Portable => {}
            }
            body($($argument),*)
        }
    };
}
pub(super) use vectorised;

#[inline(always)]
fn sum(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    sum(lanes) + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// e^x to about two units in the last place for x from -87 to 88, clamped outside.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts keeps the remainder exact.
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p * r + coefficient;
    }
    let p = p * r * r + r + 1.0;
    p * f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23)
}

vectorised! {
    /// Writes `input / rms(input) * weight` to `output`.
    fn rms_norm(input: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32]) {
        let scale = 1.0 / (dot(input, input) / input.len() as f32 + epsilon).sqrt();
        for ((output, input), weight) in output.iter_mut().zip(input).zip(weight) {
            *output = input * scale * weight;
        }
    }
}

vectorised! {
    /// Normalises `values` in place, as `rms_norm` does.
    fn rms_norm_in_place(values: &mut [f32], weight: &[f32], epsilon: f32) {
        let scale = 1.0 / (dot(values, values) / values.len() as f32 + epsilon).sqrt();
        for (value, weight) in values.iter_mut().zip(weight) {
            *value = *value * scale * weight;
        }
    }
}

vectorised! {
    /// Adds `input / rms(input) * weight` to `sums`.
    fn add_rms_norm(input: &[f32], weight: &[f32], epsilon: f32, sums: &mut [f32]) {
        let scale = 1.0 / (dot(input, input) / input.len() as f32 + epsilon).sqrt();
        for ((sum, input), weight) in sums.iter_mut().zip(input).zip(weight) {
            *sum += input * scale * weight;
        }
    }
}

vectorised! {
    /// Turns the pairs (i, i + half) of a head by the angles given as cosines and sines.
    fn rotate(head: &mut [f32], cosines: &[f32], sines: &[f32]) {
        let (low, high) = head.split_at_mut(head.len() / 2);
        for (((low, high), cosine), sine) in low.iter_mut().zip(high).zip(cosines).zip(sines) {
            let (a, b) = (*low, *high);
            *low = a * cosine - b * sine;
            *high = a * sine + b * cosine;
        }
    }
}

vectorised! {
    /// Multiplies `gate` by GELU of itself's tanh form times `up`: `gate[i] = gelu(gate[i]) * up[i]`.
    fn gelu_times(gate: &mut [f32], up: &[f32]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            // x · (1 + tanh u) / 2 = x / (1 + e^(-2u))
            let x = *gate;
            let u = 0.797_884_6 * (x + 0.044_715 * x * x * x);
            *gate = x / (1.0 + exp(-2.0 * u)) * up;
        }
    }
}

vectorised! {
    /// Turns neighbouring pairs (2i, 2i + 1) of a head by the angles given as cosines and sines.
    fn rotate_pairs(head: &mut [f32], cosines: &[f32], sines: &[f32]) {
        for ((pair, cosine), sine) in head.as_chunks_mut::<2>().0.iter_mut().zip(cosines).zip(sines) {
            let [a, b] = *pair;
            *pair = [a * cosine - b * sine, a * sine + b * cosine];
        }
    }
}

vectorised! {
    /// Multiplies SiLU of `gate` by `up`: `gate[i] = gate[i] / (1 + e^(-gate[i])) * up[i]`.
    fn silu_times(gate: &mut [f32], up: &[f32]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            let x = *gate;
            *gate = x / (1.0 + exp(-x)) * up;
        }
    }
}

vectorised! {
    /// Adds `other` to `values`.
    fn add(values: &mut [f32], other: &[f32]) {
        for (value, other) in values.iter_mut().zip(other) {
            *value += other;
        }
    }
}

vectorised! {
    /// Replaces the scores from `first` to `end` by their softmax after scaling, and all others by 0. Their number is a
    /// multiple of sixteen; sums run over all, so zeros before and after change nothing.
    fn fill_softmax(scores: &mut [f32], first: usize, end: usize, scale: f32) {
        scores[..first].fill(f32::NEG_INFINITY);
        scores[end..].fill(f32::NEG_INFINITY);
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for chunk in scores.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
            }
        }
        let largest = lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut lanes = [0.0; LANES];
        for chunk in scores.as_chunks_mut::<LANES>().0 {
            for lane in 0..LANES {
                let weight = exp((chunk[lane] - largest) * scale);
                chunk[lane] = if chunk[lane] == f32::NEG_INFINITY { 0.0 } else { weight };
                lanes[lane] += chunk[lane];
            }
        }
        let inverse = 1.0 / sum(lanes);
        for score in scores.iter_mut() {
            *score *= inverse;
        }
    }
}

vectorised! {
    /// The natural logarithm of Σ e^(value - largest), `largest` being their maximum.
    fn log_sum_exp(values: &[f32], largest: f32) -> f32 {
        let (chunks, rest) = values.as_chunks::<LANES>();
        let mut lanes = [0.0; LANES];
        for chunk in chunks {
            for lane in 0..LANES {
                lanes[lane] += exp(chunk[lane] - largest);
            }
        }
        (sum(lanes) + rest.iter().map(|value| exp(value - largest)).sum::<f32>()).ln()
    }
}

vectorised! {
    /// The largest value, `-inf` of none.
    fn largest(values: &[f32]) -> f32 {
        let (chunks, rest) = values.as_chunks::<LANES>();
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for chunk in chunks {
            for lane in 0..LANES {
                lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
            }
        }
        lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_a_few_units_in_the_last_place() {
        for step in -8600..8700 {
            let x = step as f32 * 0.01;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 3e-7, "exp({x}) = {} instead of {exact}", exp(x));
        }
    }

    #[test]
    fn gelu_is_the_tanh_form() {
        let mut gate: Vec<f32> = (-50..50).map(|step| step as f32 * 0.2).collect();
        let exact: Vec<f64> = gate
            .iter()
            .map(|x| f64::from(*x))
            .map(|x| 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x)).tanh()))
            .collect();
        gelu_times(&mut gate, &[1.0; 100]);
        for (gate, exact) in gate.iter().zip(exact) {
            assert!((f64::from(*gate) - exact).abs() < 1e-6, "{gate} instead of {exact}");
        }
    }

    #[test]
    fn silu_and_softmax_are_those_of_their_definitions() {
        let mut gate: Vec<f32> = (-50..50).map(|step| step as f32 * 0.2).collect();
        let exact: Vec<f64> = gate.iter().map(|x| f64::from(*x) / (1.0 + (-f64::from(*x)).exp()) * 0.5).collect();
        silu_times(&mut gate, &[0.5; 100]);
        for (gate, exact) in gate.iter().zip(exact) {
            assert!((f64::from(*gate) - exact).abs() < 1e-6, "{gate} instead of {exact}");
        }
        let mut scores: Vec<f32> = (0..48).map(|step| (step * 7 % 11) as f32).collect();
        let total: f64 = scores[3..40].iter().map(|score| (f64::from(*score) * 0.3).exp()).sum();
        let exact: Vec<f64> = scores.iter().map(|score| (f64::from(*score) * 0.3).exp() / total).collect();
        fill_softmax(&mut scores, 3, 40, 0.3);
        for (index, (score, exact)) in scores.iter().zip(exact).enumerate() {
            let exact = if (3..40).contains(&index) { exact } else { 0.0 };
            assert!((f64::from(*score) - exact).abs() < 1e-7, "{index}: {score} instead of {exact}");
        }
    }

    #[test]
    fn pairs_turn_by_their_angles() {
        let (mut apart, mut beside) = ([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]);
        let (cosines, sines) = ([0.6, 0.8], [0.8, 0.6]);
        rotate(&mut apart, &cosines, &sines);
        rotate_pairs(&mut beside, &cosines, &sines);
        assert_eq!([apart[0], apart[2], apart[1], apart[3]], beside);
    }
}
