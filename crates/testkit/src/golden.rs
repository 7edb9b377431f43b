//! Distances between what is computed and what a reference computed.

/// Returns the cosine of the angle between two vectors of one length, computed in double precision.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "vectors of different lengths");
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt())
}

/// Returns the largest absolute difference between elements; NaN if any element is.
pub fn max_abs(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "vectors of different lengths");
    let differences = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    differences.fold(0.0, |most, d| if d > most || d.is_nan() { d } else { most })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_directions_have_cosine_one() {
        assert!((cosine(&[1.0, 2.0, 3.0], &[2.0, 4.0, 6.0]) - 1.0).abs() < 1e-12);
        assert!(cosine(&[1.0, 0.0], &[0.0, 1.0]).abs() < 1e-12);
    }

    #[test]
    fn the_largest_difference_wins_and_nan_is_not_hidden() {
        assert_eq!(max_abs(&[1.0, 2.0], &[1.5, 0.0]), 2.0);
        assert!(max_abs(&[f32::NAN, 2.0], &[1.0, 0.0]).is_nan());
    }
}
