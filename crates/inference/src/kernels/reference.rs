//! What the kernels are tested against: plain double-precision arithmetic, on every architecture of this machine.

use pulp::Arch;

use super::Level;

/// The architectures that can run here, the portable one always among them.
pub(crate) fn architectures() -> Vec<Arch> {
    let mut all = vec![Arch::Scalar];
    #[cfg(target_arch = "x86_64")]
    {
        all.extend(pulp::x86::V3::try_new().map(Arch::V3));
        all.extend(pulp::x86::V4::try_new().map(Arch::V4));
    }
    #[cfg(not(target_arch = "x86_64"))]
    all.push(Arch::new());
    all
}

/// The levels that can run here, the portable one always among them.
pub(crate) fn levels() -> Vec<Level> {
    match Level::detect() {
        Level::Portable => vec![Level::Portable],
        #[cfg(target_arch = "x86_64")]
        Level::Vnni => vec![Level::Portable, Level::Vnni],
        #[cfg(target_arch = "x86_64")]
        Level::VnniBf16 => vec![Level::Portable, Level::Vnni, Level::VnniBf16],
    }
}

/// Repeatable numbers in [-1, 1).
pub(crate) fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / 2_147_483_648.0 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

pub(crate) fn close(actual: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (at, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((f64::from(*a) - e).abs() <= tolerance * e.abs().max(1.0), "{what}: [{at}] is {a}, expected {e}");
    }
}

/// `x · Φ(x)` by the power series of erf near zero and its continued fraction beyond.
pub(crate) fn gelu_exact(x: f64) -> f64 {
    let z = x.abs() * std::f64::consts::FRAC_1_SQRT_2;
    let tail = if z < 2.0 {
        let (mut term, mut sum) = (z, z);
        for n in 1..60 {
            term *= -z * z / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        1.0 - sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let fraction = (1..=60).rev().fold(z, |below, n| z + f64::from(n) / 2.0 / below);
        (-z * z).exp() / fraction / std::f64::consts::PI.sqrt()
    };
    if x < 0.0 { x * 0.5 * tail } else { x * (1.0 - 0.5 * tail) }
}
