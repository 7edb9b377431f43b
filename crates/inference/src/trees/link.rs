//! From margins to what a model is asked for: probabilities, counts, values.

/// The inverse of the link function a model was trained with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Link {
    Identity,
    /// `1 / (1 + e^(-slope · x))`, output by output.
    Sigmoid {
        slope: f32,
    },
    Exp,
    /// Over all outputs of a row.
    Softmax,
    /// ONNX: as softmax, but zeros stay zero.
    SoftmaxZero,
    /// Sigmoid by output, then divided by their sum.
    SigmoidShares,
    /// XGBoost `binary:hinge`: 1 above zero, 0 otherwise.
    Hinge,
    /// LightGBM `reg_sqrt`: `sign(x) · x²`.
    SignedSquare,
    /// LightGBM `cross_entropy_lambda`: `ln(1 + e^x)`.
    Log1pExp,
    /// ONNX: the standard normal quantile, as onnxruntime approximates it.
    Probit,
}

impl Link {
    /// Replaces the margins of one row.
    pub(super) fn apply(self, row: &mut [f32]) {
        match self {
            Self::Identity => {}
            Self::Sigmoid { slope } => each(row, |x| sigmoid(slope * x)),
            Self::Exp => each(row, f32::exp),
            Self::Softmax => softmax(row, false),
            Self::SoftmaxZero => softmax(row, true),
            Self::SigmoidShares => {
                each(row, sigmoid);
                divide_by_sum(row);
            }
            Self::Hinge => each(row, |x| f32::from(u8::from(x > 0.0))),
            Self::SignedSquare => each(row, |x| x.signum() * x * x),
            Self::Log1pExp => each(row, |x| x.exp().ln_1p()),
            Self::Probit => each(row, probit),
        }
    }
}

fn each(row: &mut [f32], link: impl Fn(f32) -> f32) {
    for x in row {
        *x = link(*x);
    }
}

/// The logistic function; finite for every finite number.
pub(super) fn sigmoid(x: f32) -> f32 {
    // Beyond this the exponential of an f32 is infinite; XGBoost stops at the same place.
    1.0 / (1.0 + (-x).min(88.7).exp())
}

fn softmax(row: &mut [f32], keep_zeros: bool) {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let tiny = |x: f32| keep_zeros && x.abs() <= 1e-7;
    each(row, |x| if tiny(x) { 0.0 } else { (x - most).exp() });
    divide_by_sum(row);
}

fn divide_by_sum(row: &mut [f32]) {
    let sum: f64 = row.iter().map(|x| f64::from(*x)).sum();
    if sum > 0.0 {
        each(row, |x| (f64::from(x) / sum) as f32);
    }
}

/// √2 · erf⁻¹(2x - 1), with Winitzki's approximation of the inverse error function.
fn probit(x: f32) -> f32 {
    let x = 2.0 * x - 1.0;
    let sign = if x < 0.0 { -1.0 } else { 1.0 };
    let log = ((1.0 - x) * (1.0 + x)).ln();
    let v = 2.0 / (std::f32::consts::PI * 0.147) + 0.5 * log;
    std::f32::consts::SQRT_2 * sign * (-v + (v * v - log / 0.147).sqrt()).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_stay_finite_and_sum_to_one() {
        for link in [Link::Softmax, Link::SigmoidShares] {
            let mut row = [1000.0, -1000.0, 999.0];
            link.apply(&mut row);
            assert!(row.iter().all(|p| (0.0..=1.0).contains(p)), "{row:?}");
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        }
        for (x, expected) in [(0.0, 0.5), (-1e9, 0.0), (1e9, 1.0)] {
            assert!((sigmoid(x) - expected).abs() < 1e-30_f32.max(expected * 1e-6), "{x}");
        }
    }
}
