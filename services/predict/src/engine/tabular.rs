//! Tabular models as tensors.

use async_trait::async_trait;
use verdict_inference::trees::TreeEnsemble;

use super::{
    Answered, Engine, Inputs, Signature, Wanted,
    tensor::{Data, Datatype, Spec, Tensor},
};
use crate::{admission::Admission, error::Result, release::Task, tabular::Tabular};

#[async_trait]
impl Engine for Tabular {
    fn task(&self) -> Task {
        Task::TabularClassification
    }

    fn platform(&self) -> &'static str {
        "xgboost_json"
    }

    fn signature(&self) -> Signature {
        let columns = i64::try_from(self.schema.inputs().len()).unwrap_or(-1);
        Signature {
            inputs: vec![Spec::new("input", Datatype::Fp32, [-1, columns])],
            outputs: vec![Spec::new("probability", Datatype::Fp32, [-1]), Spec::new("margin", Datatype::Fp32, [-1])],
        }
    }

    fn sample(&self) -> Vec<Tensor> {
        let columns = self.schema.inputs().len();
        vec![Tensor::new("input", [1, columns], Data::Fp32(vec![f32::NAN; columns]))]
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
        let (margins, timing) = self.margins(input.into_floats()?, admission).await?;
        let probabilities = margins.iter().map(|margin| TreeEnsemble::probability(*margin)).collect();
        let outputs = vec![Tensor::floats("probability", probabilities), Tensor::floats("margin", margins)];
        Ok(Answered { outputs, timing })
    }
}
