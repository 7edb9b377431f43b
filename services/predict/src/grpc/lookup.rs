//! From the protocol's pair of name and version to what is served.
//!
//! | name | version | what answers |
//! |---|---|---|
//! | `credit-risk` | empty | the first reference to that model that was named to serve |
//! | `credit-risk` | `3` | version 3, where it is served |
//! | `credit-risk@champion`, `credit-risk/3` | empty | that reference |
//! | `credit-risk@champion` | `3` | that reference, as long as it points at version 3 |

use std::collections::HashMap;

use verdict_api::inference::{ModelRepositoryParameter, model_repository_parameter::ParameterChoice};

use crate::{
    catalog::{Catalog, Found},
    engine::tensor::refused,
    error::Result,
    reference::Reference,
};

/// Finds the warm model. The fields are those of the request, to name them in an error.
pub(super) fn find(
    catalog: &Catalog,
    name_field: &str,
    name: &str,
    version_field: &str,
    version: &str,
) -> Result<Found> {
    if name.is_empty() {
        return Err(refused("INVALID_REQUEST", name_field, "is empty: the name of a model is expected"));
    }
    let number = match version {
        "" => None,
        digits => Some(digits.parse::<i64>().ok().filter(|number| *number > 0).ok_or_else(|| {
            refused(
                "INVALID_REQUEST",
                version_field,
                format!("is `{digits}`: a version number is expected, or nothing"),
            )
        })?),
    };
    let is_bare = !name.contains(['@', '/']);
    let found = match number {
        Some(number) if is_bare => catalog.find(&named(name_field, &format!("{name}/{number}"))?.to_string())?,
        None if is_bare => {
            // Whatever its version: this says whether the name can be one.
            named(name_field, &format!("{name}/1"))?;
            let first = first(catalog, name);
            catalog.find(&first.ok_or_else(|| catalog.not_served(name))?.to_string())?
        }
        Some(_) | None => catalog.find(&named(name_field, name)?.to_string())?,
    };
    match number {
        Some(number) if number != found.model.release.version => {
            Err(catalog.not_served(&format!("{name}, version {number}")))
        }
        Some(_) | None => Ok(found),
    }
}

/// Reads which reference a call about the repository means: `name@alias`, `name/version`, or the name of a model that is
/// served. KServe's clients send the model in the field that is Triton's `repository_name`.
pub(super) fn repository(
    catalog: &Catalog,
    repository_name: String,
    model_name: String,
    parameters: HashMap<String, ModelRepositoryParameter>,
) -> Result<Reference> {
    let (field, name) = match model_name.is_empty() {
        true => ("repository_name", repository_name),
        false => ("model_name", model_name),
    };
    for (parameter, ModelRepositoryParameter { parameter_choice }) in &parameters {
        let is_idle = parameter == "unload_dependents" && parameter_choice != &Some(ParameterChoice::BoolParam(true));
        if !is_idle {
            let problem = "is not taken: what a model is stands in the registry";
            return Err(refused("WRONG_PARAMETER", format!("parameters.{parameter}"), problem));
        }
    }
    if !name.contains(['@', '/'])
        && let Some(reference) = first(catalog, &name)
    {
        return Ok(reference);
    }
    named(field, &name)
}

/// Returns the first reference to a model, in the order in which they came.
fn first(catalog: &Catalog, model: &str) -> Option<Reference> {
    let slots = catalog.slots();
    slots.iter().map(|slot| &slot.reference).find(|reference| reference.model == model).cloned()
}

fn named(field: &str, text: &str) -> Result<Reference> {
    text.parse().map_err(|problem: String| refused("INVALID_REQUEST", field, format!("is wrong: {problem}")))
}
