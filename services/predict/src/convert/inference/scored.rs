//! What of an answer can be compared with the same of another model's answer.

use verdict_api::inference::ModelInferResponse;

use crate::routes::scores::{Scored, Scores};

/// Outputs that hold one score or several for each item, the first that is there counting.
const SCORES: [&str; 3] = ["probability", "score", "value"];
/// The output that holds a vector for each item.
const VECTORS: &str = "embedding";

impl Scored for ModelInferResponse {
    fn scores(&self) -> Scores {
        if let Some((width, values)) = SCORES.iter().find_map(|name| floats(self, name)) {
            let position = |number: usize| u32::try_from(number / width).unwrap_or(u32::MAX);
            return Scores::Numbers(values.into_iter().enumerate().map(|(at, score)| (position(at), score)).collect());
        }
        match floats(self, VECTORS) {
            Some((width, values)) => Scores::Vectors(values.chunks(width).map(<[f32]>::to_vec).collect()),
            None => Scores::None,
        }
    }
}

/// Returns the numbers of an FP32 output, and how many there are for each item.
fn floats(response: &ModelInferResponse, name: &str) -> Option<(usize, Vec<f32>)> {
    let place = response.outputs.iter().position(|output| output.name == name && output.datatype == "FP32")?;
    let output = &response.outputs[place];
    let values = match (&output.contents, response.raw_output_contents.get(place)) {
        (Some(contents), _) => contents.fp32_contents.clone(),
        (None, Some(bytes)) => bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
        (None, None) => return None,
    };
    let width = output.shape.iter().skip(1).map(|length| usize::try_from(*length).unwrap_or(1)).product();
    (width > 0).then_some((width, values))
}

#[cfg(test)]
mod tests {
    use verdict_api::inference::{InferTensorContents, model_infer_response::InferOutputTensor};

    use super::*;

    fn output(name: &str, shape: &[i64], contents: Option<Vec<f32>>) -> InferOutputTensor {
        InferOutputTensor {
            name: name.to_owned(),
            datatype: "FP32".to_owned(),
            shape: shape.to_vec(),
            contents: contents.map(|values| InferTensorContents { fp32_contents: values, ..Default::default() }),
            ..InferOutputTensor::default()
        }
    }

    #[test]
    fn scores_and_vectors_are_found_typed_and_raw() {
        let typed = output("probability", &[1, 2], Some(vec![0.25, 0.75]));
        let typed = ModelInferResponse { outputs: vec![typed], ..ModelInferResponse::default() };
        assert_eq!(typed.scores(), Scores::Numbers(vec![(0, 0.25), (0, 0.75)]));
        let raw = ModelInferResponse {
            outputs: vec![output("tokens", &[1], None), output("embedding", &[1, 2], None)],
            raw_output_contents: vec![vec![0; 4], [1.0_f32.to_le_bytes(), 2.0_f32.to_le_bytes()].concat()],
            ..ModelInferResponse::default()
        };
        assert_eq!(raw.scores(), Scores::Vectors(vec![vec![1.0, 2.0]]));
        assert_eq!(ModelInferResponse::default().scores(), Scores::None);
    }
}
