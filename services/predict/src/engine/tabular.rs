//! Tabular models as tensors.

use async_trait::async_trait;
use verdict_inference::trees::Kind;

use super::{
    Answered, Engine, Inputs, Signature, Wanted,
    tensor::{Data, Datatype, Spec, Tensor, refused},
};
use crate::{admission::Admission, error::Result, release::Task, tabular::Tabular};

impl Tabular {
    fn classifies(&self) -> bool {
        matches!(self.model().kind(), Kind::BinaryClassification | Kind::MulticlassClassification)
    }

    /// The name of what becomes of margins.
    fn answer(&self) -> &'static str {
        if self.classifies() { "probability" } else { "value" }
    }

    /// The shape of an answer: one number a row, or one for each output.
    fn answer_shape(&self) -> Vec<i64> {
        match self.model().num_outputs() {
            1 => vec![-1],
            outputs => vec![-1, i64::try_from(outputs).unwrap_or(-1)],
        }
    }
}

#[async_trait]
impl Engine for Tabular {
    fn task(&self) -> Task {
        if self.classifies() { Task::TabularClassification } else { Task::TabularRegression }
    }

    fn platform(&self) -> &'static str {
        "verdict_tabular"
    }

    fn signature(&self) -> Signature {
        let columns = i64::try_from(self.schema.inputs().len()).unwrap_or(-1);
        let output = |name| Spec::new(name, Datatype::Fp32, self.answer_shape());
        Signature {
            inputs: vec![Spec::new("input", Datatype::Fp32, [-1, columns])],
            outputs: vec![output(self.answer()), output("margin")],
        }
    }

    fn sample(&self) -> Vec<Tensor> {
        let columns = self.schema.inputs().len();
        vec![Tensor::new("input", [1, columns], Data::Fp32(vec![0.0; columns]))]
    }

    /// Rows as in `Predict`'s matrix: columns in the order of the signature, NaN a missing value.
    async fn compute(&self, mut inputs: Inputs, _wanted: &Wanted, admission: Admission) -> Result<Answered> {
        let input = inputs.require("input")?;
        if input.data.is_empty() {
            return Err(input.refused("WRONG_SHAPE", "shape", "has no rows: at least one is expected"));
        }
        if let Data::Fp32(cells) = &input.data
            && let Some(index) = cells.iter().position(|cell| cell.is_infinite())
        {
            let problem = format!("is {}: a finite number, or NaN for a missing value", cells[index]);
            return Err(input.refused("WRONG_VALUE", &format!("contents[{index}]"), problem));
        }
        let (at, columns) = (input.at, self.schema.inputs().len());
        let (margins, timing) = self.margins(input.into_floats()?, admission).await?;
        let mut answers = margins.clone();
        self.model().transform(&mut answers);
        let outputs = self.model().num_outputs();
        if let Some(index) = answers.iter().zip(&margins).position(|(one, other)| !(one + other).is_finite()) {
            let row = index / outputs;
            let problem =
                format!("begins row {row}, whose answer is no finite number: a value is missing, or too large");
            return Err(refused("WRONG_VALUE", format!("inputs[{at}].contents[{}]", row * columns), problem));
        }
        let rows = margins.len() / outputs;
        let shape = if outputs == 1 { vec![rows] } else { vec![rows, outputs] };
        let tensor = |name: &str, numbers| Tensor { shape: shape.clone(), ..Tensor::floats(name, numbers) };
        Ok(Answered { outputs: vec![tensor(self.answer(), answers), tensor("margin", margins)], timing })
    }
}
