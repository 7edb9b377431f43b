//! Gauss–Legendre quadrature on [0, 1].

/// Returns `count` points and their weights: sums over them are exact integrals of polynomials of degree below
/// `2 * count`.
pub(super) fn gauss_legendre(count: usize) -> Vec<(f64, f64)> {
    let n = count as f64;
    let point = |index: usize| {
        // Newton's method on the Legendre polynomial, from Tricomi's estimate of its roots.
        let mut x = (std::f64::consts::PI * (index as f64 + 0.75) / (n + 0.5)).cos();
        let mut slope = 1.0;
        for _ in 0..100 {
            let (mut before, mut value) = (1.0, x);
            for k in 2..=count {
                let k = k as f64;
                (before, value) = (value, ((2.0 * k - 1.0) * x * value - (k - 1.0) * before) / k);
            }
            slope = n * (x * value - before) / (x * x - 1.0);
            let step = value / slope;
            x -= step;
            if step.abs() < 1e-15 {
                break;
            }
        }
        let weight = 2.0 / ((1.0 - x * x) * slope * slope);
        ((1.0 - x) / 2.0, weight / 2.0)
    };
    if count == 1 { vec![(0.5, 1.0)] } else { (0..count).map(point).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polynomials_are_integrated_exactly() {
        for count in [1, 2, 3, 4, 8, 17, 64, 128] {
            let points = gauss_legendre(count);
            assert!(points.iter().all(|(t, weight)| *t > 0.0 && *t < 1.0 && *weight > 0.0), "{count}");
            for degree in [0, 1, count, 2 * count - 1] {
                let sum: f64 = points.iter().map(|(t, weight)| weight * t.powi(degree as i32)).sum();
                let exact = 1.0 / (degree as f64 + 1.0);
                assert!((sum - exact).abs() < 1e-14, "{count} points, degree {degree}: {sum}, not {exact}");
            }
        }
    }
}
