//! The Open Inference Protocol's messages: requests to tensors, tensors to answers.

mod contents;
mod raw;
mod scored;
mod state;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use verdict_api::inference::{
    InferParameter, ModelInferRequest, ModelInferResponse, infer_parameter::ParameterChoice,
    model_infer_request::InferInputTensor, model_infer_response::InferOutputTensor,
};

pub use self::state::{config, indexed, metadata, statistics};
use crate::{
    admission::{Admission, Priority},
    catalog::Found,
    engine::{
        Answered, Asked,
        tensor::{Datatype, Tensor, refused},
    },
    error::Result,
};

/// A request that has been read.
#[derive(Debug)]
pub struct Infer {
    pub model: String,
    pub version: String,
    pub id: String,
    pub asked: Asked,
    /// Answer in `raw_output_contents`, as the caller asked, by word or by example.
    pub is_raw: bool,
}

/// Reads a request, as far as that needs no model. `admission` is the call's; the parameter `timeout` may shorten its
/// deadline, and a `priority` of 2 and more makes it batch work.
pub fn infer(request: ModelInferRequest, mut admission: Admission) -> Result<Infer> {
    let ModelInferRequest { model_name, model_version, id, parameters, inputs, outputs, raw_input_contents } = request;
    let Parameters { timeout, is_batch, binary_output } = read_parameters(&parameters)?;
    let has_raw = !raw_input_contents.is_empty();
    let has_typed = inputs.iter().any(|input| input.contents.is_some());
    let inputs = tensors(inputs, raw_input_contents)?;
    let cut = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    admission.deadline = match (admission.deadline, cut) {
        (Some(deadline), Some(cut)) => Some(deadline.min(cut)),
        (one, other) => one.or(other),
    };
    if is_batch {
        admission.priority = Priority::Batch;
    }
    // Nothing to go by: the client that most people have reads raw answers only.
    let is_raw = binary_output.unwrap_or(has_raw || !has_typed);
    let outputs = outputs.into_iter().map(|output| output.name).collect();
    Ok(Infer { model: model_name, version: model_version, id, asked: Asked { inputs, outputs, admission }, is_raw })
}

/// Writes an answer. FP16 and BF16 have no typed field: an answer with one of them is raw in any case.
pub fn inferred(
    found: &Found,
    asked_model: String,
    id: String,
    answered: Answered,
    is_raw: bool,
) -> ModelInferResponse {
    let is_raw = is_raw || answered.outputs.iter().any(|output| contents::is_raw_only(output.data.datatype()));
    let mut raw_output_contents = Vec::new();
    let outputs = answered.outputs.into_iter().map(|Tensor { name, shape, data, at: _ }| {
        let datatype = data.datatype().name().to_owned();
        let shape = shape.into_iter().map(|length| i64::try_from(length).unwrap_or(i64::MAX)).collect();
        let contents = if is_raw {
            raw_output_contents.push(raw::write(data));
            None
        } else {
            Some(contents::write(data))
        };
        InferOutputTensor { name, datatype, shape, parameters: HashMap::new(), contents }
    });
    let outputs = outputs.collect();
    ModelInferResponse {
        model_name: asked_model,
        model_version: found.model.release.version.to_string(),
        id,
        parameters: HashMap::new(),
        outputs,
        raw_output_contents,
    }
}

/// What the reserved parameters say; the others are the model's, and no model here has any.
struct Parameters {
    timeout: Option<Duration>,
    is_batch: bool,
    binary_output: Option<bool>,
}

fn read_parameters(parameters: &HashMap<String, InferParameter>) -> Result<Parameters> {
    let mut read = Parameters { timeout: None, is_batch: false, binary_output: None };
    for (name, InferParameter { parameter_choice }) in parameters {
        let wrong = |expected: &str| Err(refused("WRONG_PARAMETER", format!("parameters.{name}"), expected.to_owned()));
        match (name.as_str(), parameter_choice) {
            ("timeout", choice) => match integer(choice) {
                Some(0) => {}
                Some(micros) => read.timeout = Some(Duration::from_micros(micros)),
                None => return wrong("is no number of microseconds from 0 up"),
            },
            // 1 is the most urgent there is, 0 what the call says otherwise.
            ("priority", choice) => match integer(choice) {
                Some(level) => read.is_batch = level > 1,
                None => return wrong("is no number from 0 up"),
            },
            ("binary_data_output", Some(ParameterChoice::BoolParam(is_raw))) => read.binary_output = Some(*is_raw),
            ("binary_data_output", _) => return wrong("is no boolean"),
            ("sequence_id" | "sequence_start" | "sequence_end", choice) if is_set(choice) => {
                return wrong("is set: no model here keeps state between calls");
            }
            _ => {}
        }
    }
    Ok(read)
}

/// Takes a number in any of the forms that clients send.
fn integer(choice: &Option<ParameterChoice>) -> Option<u64> {
    match choice {
        Some(ParameterChoice::Int64Param(number)) => u64::try_from(*number).ok(),
        Some(ParameterChoice::Uint64Param(number)) => Some(*number),
        Some(ParameterChoice::StringParam(number)) => number.parse().ok(),
        Some(ParameterChoice::BoolParam(_) | ParameterChoice::DoubleParam(_)) | None => None,
    }
}

fn is_set(choice: &Option<ParameterChoice>) -> bool {
    match choice {
        Some(ParameterChoice::BoolParam(is_set)) => *is_set,
        Some(ParameterChoice::StringParam(id)) => !id.is_empty(),
        choice => integer(choice).is_some_and(|number| number != 0),
    }
}

/// Reads the inputs: all of them raw, or all of them typed. Nothing is allocated that the message does not carry.
fn tensors(inputs: Vec<InferInputTensor>, raw: Vec<Vec<u8>>) -> Result<Vec<Tensor>> {
    let is_raw = !raw.is_empty();
    if is_raw && raw.len() != inputs.len() {
        let problem = format!("has {} entries for {} inputs: one for each is expected", raw.len(), inputs.len());
        return Err(refused("RAW_COUNT", "raw_input_contents", problem));
    }
    let mut raw = raw.into_iter();
    let read = |(at, input): (usize, InferInputTensor)| {
        let InferInputTensor { name, datatype, shape, parameters, contents } = input;
        let place = |part: &str| format!("inputs[{at}].{part}");
        if let Some(region) = parameters.keys().find(|name| name.starts_with("shared_memory_")) {
            let problem = "is set: tensors travel in the message, not in shared memory";
            return Err(refused("WRONG_PARAMETER", place(&format!("parameters.{region}")), problem));
        }
        let Some(datatype) = Datatype::parse(&datatype) else {
            let known: Vec<_> = Datatype::ALL.into_iter().map(Datatype::name).collect();
            let problem = format!("is `{datatype}`: one of {} is expected", known.join(", "));
            return Err(refused("DATATYPE_UNKNOWN", place("datatype"), problem));
        };
        let (shape, count) = self::shape(&shape).map_err(|problem| refused("WRONG_SHAPE", place("shape"), problem))?;
        let data = match (raw.next(), contents) {
            (Some(_), Some(contents)) if !contents::is_empty(&contents) => {
                let problem = "is set beside raw_input_contents: either all inputs are raw, or all are typed";
                return Err(refused("RAW_AND_TYPED", place("contents"), problem));
            }
            (Some(bytes), _) => raw::read(datatype, count, bytes)
                .map_err(|problem| refused("WRONG_CONTENTS", format!("raw_input_contents[{at}]"), problem))?,
            (None, contents) => contents::read(datatype, count, contents.unwrap_or_default())
                .map_err(|problem| refused("WRONG_CONTENTS", place("contents"), problem))?,
        };
        Ok(Tensor { name, shape, data, at })
    };
    inputs.into_iter().enumerate().map(read).collect()
}

/// Returns a shape as lengths, and the number of elements.
fn shape(shape: &[i64]) -> std::result::Result<(Vec<usize>, usize), String> {
    let mut lengths = Vec::with_capacity(shape.len());
    let mut count = 1_usize;
    for length in shape {
        let length = usize::try_from(*length).map_err(|_| format!("has the length {length}: 0 and up are expected"))?;
        count = count.checked_mul(length).ok_or("has more elements than can be counted")?;
        lengths.push(length);
    }
    Ok((lengths, count))
}

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use self::tests::any_request;
