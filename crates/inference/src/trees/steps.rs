//! What happens to the columns of a row before trees or weights see it.

use super::forest::MAX_FEATURES;
use super::problem::{Result, malformed, unsupported};

/// Steps over matrices that share their rows. Matrix 0 is the input; each step adds one.
#[derive(Debug)]
pub(super) struct Steps {
    steps: Vec<Step>,
    /// For each matrix and column, the input column it is made of alone.
    sources: Vec<Vec<Option<u32>>>,
    /// Columns of all matrices together.
    total: usize,
    /// The matrix that is handed on.
    output: usize,
}

#[derive(Debug)]
struct Step {
    operation: Operation,
    inputs: Vec<usize>,
}

/// Vectors have one number a column.
#[derive(Debug)]
pub(super) enum Operation {
    /// `(x - offset) · scale`.
    Scale {
        offset: Vec<f32>,
        scale: Vec<f32>,
    },
    Add(Vec<f32>),
    Subtract(Vec<f32>),
    Multiply(Vec<f32>),
    Divide(Vec<f32>),
    /// Replaces one value, or NaN.
    Impute {
        replaced: f32,
        by: Vec<f32>,
    },
    /// Zeros, to LightGBM's precision, become NaN in the columns that are set.
    ZeroIsMissing(Vec<bool>),
    /// 1 above the threshold, else 0.
    Binarize(f32),
    /// One column for each value of each input column: 1 where it is that.
    OneHot(Vec<f32>),
    /// Divides each row by its norm.
    Normalize(Norm),
    Select(Vec<usize>),
    Concatenate,
    /// Cuts to a whole number.
    Truncate,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Norm {
    Max,
    L1,
    L2,
}

impl Steps {
    pub(super) fn new(width: usize) -> Result<Self> {
        if !(1..=MAX_FEATURES).contains(&width) {
            return malformed(format!("{width} features, expected 1 to {MAX_FEATURES}"));
        }
        let sources = vec![(0..width as u32).map(Some).collect()];
        Ok(Self { steps: Vec::new(), sources, total: width, output: 0 })
    }

    /// Columns of a matrix.
    pub(super) fn width(&self, matrix: usize) -> usize {
        self.sources[matrix].len()
    }

    pub(super) fn output_width(&self) -> usize {
        self.width(self.output)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.output == 0
    }

    /// Hands this matrix on.
    pub(super) fn finish(&mut self, output: usize) {
        self.output = output;
    }

    /// Appends a step and returns the number of its matrix. Vectors of one number are for all columns.
    pub(super) fn push(&mut self, mut operation: Operation, inputs: Vec<usize>) -> Result<usize> {
        let Some(&first) = inputs.first() else { return malformed("an operator has no inputs") };
        let width = self.width(first);
        let sources = match &mut operation {
            Operation::Scale { offset, scale } => {
                spread(offset, width)?;
                spread(scale, width)?;
                self.sources[first].clone()
            }
            Operation::Add(by) | Operation::Subtract(by) | Operation::Multiply(by) | Operation::Divide(by) => {
                spread(by, width)?;
                self.sources[first].clone()
            }
            Operation::Impute { by, .. } => {
                spread(by, width)?;
                self.sources[first].clone()
            }
            Operation::ZeroIsMissing(columns) => {
                if columns.len() != width {
                    return malformed(format!("{} flags for {width} columns", columns.len()));
                }
                self.sources[first].clone()
            }
            Operation::Binarize(_) | Operation::Truncate => self.sources[first].clone(),
            Operation::Normalize(_) => vec![None; width],
            Operation::OneHot(values) => {
                self.room(width.saturating_mul(values.len()))?;
                self.sources[first].iter().flat_map(|source| std::iter::repeat_n(*source, values.len())).collect()
            }
            Operation::Select(columns) => {
                if let Some(column) = columns.iter().find(|column| **column >= width) {
                    return malformed(format!("column {column} of {width} is selected"));
                }
                columns.iter().map(|column| self.sources[first][*column]).collect()
            }
            Operation::Concatenate => {
                self.room(inputs.iter().map(|input| self.width(*input)).sum())?;
                inputs.iter().flat_map(|input| self.sources[*input].iter().copied()).collect()
            }
        };
        self.room(sources.len())?;
        if sources.is_empty() {
            return malformed("an operator makes no columns");
        }
        self.total += sources.len();
        self.sources.push(sources);
        self.steps.push(Step { operation, inputs });
        Ok(self.steps.len())
    }

    fn room(&self, width: usize) -> Result<()> {
        if self.total.saturating_add(width) > MAX_FEATURES {
            return unsupported(format!("more than {MAX_FEATURES} columns in all steps together"));
        }
        Ok(())
    }

    /// For each column that is handed on, the input column it is made of; `None` if it is made of several.
    pub(super) fn sources(&self) -> &[Option<u32>] {
        &self.sources[self.output]
    }

    /// Computes what is handed on for some rows, row-major.
    pub(super) fn run(&self, rows: &[f32]) -> Vec<f32> {
        let count = rows.len() / self.width(0);
        let mut matrices: Vec<Vec<f32>> = vec![rows.to_vec()];
        for (number, step) in self.steps.iter().enumerate().take(self.output) {
            let width = self.width(number + 1);
            let mut made = Vec::with_capacity(count * width);
            for row in 0..count {
                let mut inputs = step.inputs.iter().map(|input| {
                    let width = self.width(*input);
                    &matrices[*input][row * width..][..width]
                });
                match (&step.operation, inputs.next()) {
                    (Operation::Concatenate, first) => first.into_iter().chain(inputs).for_each(|row| made.extend(row)),
                    (operation, Some(row)) => operation.run(row, &mut made),
                    (_, None) => {}
                }
            }
            matrices.push(made);
        }
        matrices.swap_remove(self.output)
    }
}

impl Operation {
    fn run(&self, row: &[f32], made: &mut Vec<f32>) {
        let with = |by: &[f32], of: fn(f32, f32) -> f32, made: &mut Vec<f32>| {
            made.extend(row.iter().zip(by).map(|(x, by)| of(*x, *by)));
        };
        match self {
            Self::Scale { offset, scale } => {
                made.extend(row.iter().zip(offset).zip(scale).map(|((x, offset), scale)| (x - offset) * scale));
            }
            Self::Add(by) => with(by, |x, by| x + by, made),
            Self::Subtract(by) => with(by, |x, by| x - by, made),
            Self::Multiply(by) => with(by, |x, by| x * by, made),
            Self::Divide(by) => with(by, |x, by| x / by, made),
            Self::Impute { replaced, by } => {
                let is = |x: f32| x == *replaced || x.is_nan() && replaced.is_nan();
                made.extend(row.iter().zip(by).map(|(x, by)| if is(*x) { *by } else { *x }));
            }
            Self::ZeroIsMissing(columns) => {
                // LightGBM's kZeroThreshold.
                let zero = |x: f32| f64::from(x).abs() <= f64::from(1e-35_f32);
                made.extend(row.iter().zip(columns).map(|(x, is)| if *is && zero(*x) { f32::NAN } else { *x }));
            }
            Self::Binarize(threshold) => made.extend(row.iter().map(|x| f32::from(u8::from(x > threshold)))),
            Self::OneHot(values) => {
                for x in row {
                    made.extend(values.iter().map(|value| f32::from(u8::from(x == value))));
                }
            }
            Self::Normalize(norm) => {
                let norm: f32 = match norm {
                    Norm::Max => row.iter().fold(0.0, |most, x| most.max(x.abs())),
                    Norm::L1 => row.iter().map(|x| x.abs()).sum(),
                    Norm::L2 => row.iter().map(|x| x * x).sum::<f32>().sqrt(),
                };
                made.extend(row.iter().map(|x| if norm == 0.0 { *x } else { x / norm }));
            }
            Self::Select(columns) => made.extend(columns.iter().map(|column| row[*column])),
            Self::Concatenate => made.extend(row),
            Self::Truncate => made.extend(row.iter().map(|x| x.trunc())),
        }
    }
}

/// Makes a vector as long as there are columns.
fn spread(vector: &mut Vec<f32>, width: usize) -> Result<()> {
    match vector.len() {
        length if length == width => Ok(()),
        1 => {
            *vector = vec![vector[0]; width];
            Ok(())
        }
        length => malformed(format!("{length} numbers for {width} columns")),
    }
}
