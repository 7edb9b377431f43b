//! Functions of single numbers and single rows: GELU, the exponential, layer normalisation.

use pulp::{Arch, Simd, WithSimd};

/// Replaces each `x` by `x · Φ(x)`, the exact (erf) form of GELU, within 3e-7 · |x|.
#[inline(always)]
pub(super) fn gelu<S: Simd>(simd: S, values: &mut [f32]) {
    let (whole, rest) = S::as_mut_simd_f32s(values);
    for x in whole {
        *x = gelu_vector(simd, *x);
    }
    if !rest.is_empty() {
        let x = simd.partial_load_f32s(rest);
        simd.partial_store_f32s(rest, gelu_vector(simd, x));
    }
}

#[inline(always)]
fn gelu_vector<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let half = simd.mul_f32s(x, simd.splat_f32s(0.5));
    let erf = erf_vector(simd, simd.mul_f32s(x, simd.splat_f32s(std::f32::consts::FRAC_1_SQRT_2)));
    simd.mul_add_e_f32s(half, erf, half)
}

/// The error function as an odd rational function on [-4, 4], beyond which it is ±1 in `f32`.
#[inline(always)]
fn erf_vector<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let x = simd.max_f32s(simd.min_f32s(x, simd.splat_f32s(4.0)), simd.splat_f32s(-4.0));
    let square = simd.mul_f32s(x, x);
    let above = polynomial(
        simd,
        square,
        [
            -2.726_142e-10,
            2.770_681_5e-8,
            -2.101_024_1e-6,
            -5.692_506_3e-5,
            -7.349_906_3e-4,
            -2.954_6e-3,
            -1.609_603_3e-2,
        ],
    );
    let below =
        polynomial(simd, square, [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_473_9e-2]);
    simd.div_f32s(simd.mul_f32s(x, above), below)
}

/// `e^x` within 2e-7 relative for `x` in [-87, 88]; arguments outside are moved to that range.
#[inline(always)]
pub(super) fn exp_vector<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    /// Adding this leaves the nearest integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let x = simd.max_f32s(simd.min_f32s(x, simd.splat_f32s(88.0)), simd.splat_f32s(-87.0));
    let rounded = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), simd.splat_f32s(ROUND));
    let power = simd.sub_f32s(rounded, simd.splat_f32s(ROUND));
    // ln 2 in two parts, so that what remains of x is exact.
    let x = simd.mul_add_e_f32s(power, simd.splat_f32s(-0.693_359_4), x);
    let x = simd.mul_add_e_f32s(power, simd.splat_f32s(2.121_944_4e-4), x);
    let series =
        polynomial(simd, x, [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0]);
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(rounded), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(series), exponent))
}

#[inline(always)]
fn polynomial<S: Simd, const N: usize>(simd: S, x: S::f32s, falling: [f32; N]) -> S::f32s {
    let mut value = simd.splat_f32s(falling[0]);
    for coefficient in &falling[1..] {
        value = simd.mul_add_e_f32s(value, x, simd.splat_f32s(*coefficient));
    }
    value
}

/// Layer normalisation with its learned scale and shift.
pub(crate) struct LayerNorm {
    scale: Vec<f32>,
    shift: Vec<f32>,
    epsilon: f32,
    arch: Arch,
}

impl LayerNorm {
    pub(crate) fn new(arch: Arch, scale: Vec<f32>, shift: Vec<f32>, epsilon: f32) -> Self {
        assert_eq!(scale.len(), shift.len(), "the shapes were checked at load");
        Self { scale, shift, epsilon, arch }
    }

    /// Normalises each row of `scale.len()` numbers in place.
    pub(crate) fn apply(&self, rows: &mut [f32]) {
        self.arch.dispatch(Normalize { norm: self, rows });
    }
}

struct Normalize<'a> {
    norm: &'a LayerNorm,
    rows: &'a mut [f32],
}

impl WithSimd for Normalize<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let LayerNorm { scale, shift, epsilon, .. } = self.norm;
        let (scales, scale_rest) = S::as_simd_f32s(scale);
        let (shifts, shift_rest) = S::as_simd_f32s(shift);
        let inverse = 1.0 / scale.len() as f32;
        for row in self.rows.chunks_exact_mut(scale.len()) {
            let (whole, rest) = S::as_mut_simd_f32s(row);
            let mut sum = simd.partial_load_f32s(rest);
            for x in &*whole {
                sum = simd.add_f32s(sum, *x);
            }
            let mean = simd.splat_f32s(simd.reduce_sum_f32s(sum) * inverse);
            let mut squares = simd.splat_f32s(0.0);
            for x in &mut *whole {
                *x = simd.sub_f32s(*x, mean);
                squares = simd.mul_add_e_f32s(*x, *x, squares);
            }
            // The rest is padded after the subtraction: what pads it must not count as a deviation.
            let moved = simd.sub_f32s(simd.partial_load_f32s(rest), mean);
            simd.partial_store_f32s(rest, moved);
            let moved = simd.partial_load_f32s(rest);
            squares = simd.mul_add_e_f32s(moved, moved, squares);
            let variance = simd.reduce_sum_f32s(squares) * inverse;
            let factor = simd.splat_f32s(1.0 / (variance + epsilon).sqrt());
            for ((x, scale), shift) in whole.iter_mut().zip(scales).zip(shifts) {
                *x = simd.mul_add_e_f32s(simd.mul_f32s(*x, factor), *scale, *shift);
            }
            let scaled = simd.mul_f32s(simd.mul_f32s(moved, factor), simd.partial_load_f32s(scale_rest));
            simd.partial_store_f32s(rest, simd.add_f32s(scaled, simd.partial_load_f32s(shift_rest)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::{architectures, close, gelu_exact, numbers};

    struct Map<'a>(bool, &'a mut [f32]);

    impl WithSimd for Map<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Self(is_gelu, values) = self;
            if is_gelu {
                return gelu(simd, values);
            }
            for x in S::as_mut_simd_f32s(values).0 {
                *x = exp_vector(simd, *x);
            }
        }
    }

    #[test]
    fn gelu_equals_the_exact_one_everywhere() {
        let values: Vec<f32> = (-200_003..200_000).map(|i| i as f32 * 1e-4).chain([-1e30, 1e30, 0.0]).collect();
        for arch in architectures() {
            let mut output = values.clone();
            arch.dispatch(Map(true, &mut output));
            for (x, y) in values.iter().zip(&output) {
                let error = (f64::from(*y) - gelu_exact(f64::from(*x))).abs();
                assert!(error <= 3e-7 * f64::from(x.abs()), "{arch:?}: gelu({x}) = {y}, off by {error:e}");
            }
        }
    }

    #[test]
    fn the_exponential_is_exact_to_two_in_ten_million() {
        let values: Vec<f32> = (0..174_992).map(|i| -87.0 + i as f32 * 1e-3).collect();
        for arch in architectures() {
            let mut output = values.clone();
            arch.dispatch(Map(false, &mut output));
            for (x, y) in values.iter().zip(&output) {
                let exact = f64::from(*x).exp();
                let error = (f64::from(*y) - exact).abs() / exact;
                assert!(error <= 2e-7, "{arch:?}: exp({x}) = {y}, off by {error:e}");
            }
        }
    }

    #[test]
    fn layer_normalisation_equals_the_plain_one_at_every_width() {
        for width in [1, 3, 16, 17, 31, 384] {
            let (input, scale, shift) = (numbers(5 * width, 1), numbers(width, 2), numbers(width, 3));
            let mut expected = Vec::new();
            for row in input.chunks(width) {
                let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / width as f64;
                let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / width as f64;
                expected.extend((0..width).map(|i| {
                    let unit = (f64::from(row[i]) - mean) / (variance + 1e-5).sqrt();
                    unit * f64::from(scale[i]) + f64::from(shift[i])
                }));
            }
            for arch in architectures() {
                let mut output = input.clone();
                LayerNorm::new(arch, scale.clone(), shift.clone(), 1e-5).apply(&mut output);
                close(&output, &expected, 1e-5, &format!("{arch:?} width {width}"));
            }
        }
    }
}
