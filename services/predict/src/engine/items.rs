//! Calls with several items, each of which may fail alone.

use super::{Wanted, tensor::Tensor};
use crate::{
    convert::MAX_INPUTS,
    error::{Error, Result},
    text::Item,
};

/// The output that says, item by item, why there is no answer: empty where there is one.
///
/// A caller who names it gets an answer to every call, with NaN or nothing where an item failed. Otherwise an item that
/// fails refuses the call: nobody takes a failure for a number.
pub(super) const ERROR: &str = "error";

/// Returns what there is of each item, and the output [`ERROR`]. `input` is the tensor the items came from.
pub(super) fn settle<T>(items: Vec<Item<T>>, input: usize, wanted: &Wanted) -> Result<(Vec<Option<T>>, Tensor)> {
    let mut errors = Vec::with_capacity(items.len());
    let mut answers = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        match item {
            Ok(answer) => {
                answers.push(Some(answer));
                errors.push(String::new());
            }
            Err(failure) if wanted.names(ERROR) => {
                answers.push(None);
                errors.push(format!("{}: {}", failure.reason, failure.message));
            }
            Err(failure) => return Err(Error::Item { field: format!("inputs[{input}].contents[{index}]"), failure }),
        }
    }
    Ok((answers, Tensor::texts(ERROR, errors)))
}

/// Refuses a call without items, or with more than a typed call may have.
pub(super) fn several(tensor: &Tensor) -> Result<()> {
    let count = tensor.data.len();
    if (1..=MAX_INPUTS).contains(&count) {
        return Ok(());
    }
    let problem = format!("has {count} texts: 1 to {MAX_INPUTS} are expected");
    Err(tensor.refused("WRONG_SHAPE", "shape", problem))
}
