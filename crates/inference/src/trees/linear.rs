//! Linear models: a weighted sum of the columns for each output.

use super::forest::{MAX_FEATURES, MAX_OUTPUTS};
use super::problem::{Result, malformed};

#[derive(Debug)]
pub(super) struct Linear {
    width: usize,
    /// One row a output.
    weights: Vec<f32>,
    intercepts: Vec<f32>,
}

impl Linear {
    pub(super) fn new(width: usize, weights: Vec<f32>, intercepts: Vec<f32>) -> Result<Self> {
        let outputs = intercepts.len();
        if !(1..=MAX_FEATURES).contains(&width) || !(1..=MAX_OUTPUTS).contains(&outputs) {
            return malformed(format!("a linear model of {width} columns and {outputs} outputs"));
        }
        if weights.len() != width * outputs {
            return malformed(format!("{} coefficients for {outputs} outputs of {width} columns", weights.len()));
        }
        if weights.iter().chain(&intercepts).any(|weight| !weight.is_finite()) {
            return malformed("a coefficient or intercept is not finite");
        }
        Ok(Self { width, weights, intercepts })
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn outputs(&self) -> usize {
        self.intercepts.len()
    }

    /// Replaces `out`, row-major, by the margins of the rows.
    pub(super) fn margins(&self, rows: &[f32], out: &mut [f32]) {
        for (row, out) in rows.chunks_exact(self.width).zip(out.chunks_exact_mut(self.outputs())) {
            for (out, (weights, intercept)) in out.iter_mut().zip(self.parts()) {
                let sum: f64 = row.iter().zip(weights).map(|(x, weight)| f64::from(*x) * f64::from(*weight)).sum();
                *out = (sum + f64::from(intercept)) as f32;
            }
        }
    }

    /// Appends, for each row and output, `weight · x` by column and the intercept: what a column adds compared with a
    /// row of zeros, which is the average row where the columns were standardised.
    pub(super) fn shares(&self, rows: &[f32], out: &mut Vec<f32>) {
        for row in rows.chunks_exact(self.width) {
            for (weights, intercept) in self.parts() {
                out.extend(row.iter().zip(weights).map(|(x, weight)| x * weight));
                out.push(intercept);
            }
        }
    }

    fn parts(&self) -> impl Iterator<Item = (&[f32], f32)> {
        self.weights.chunks_exact(self.width).zip(self.intercepts.iter().copied())
    }
}
