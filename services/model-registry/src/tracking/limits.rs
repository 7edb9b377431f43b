//! What MLflow accepts: names, lengths, counts. The messages are those its clients know.

use serde_json::{Value, json};

use super::{Batch, DatasetInput, Metric, Search, Uses};
use crate::error::{Error, Result};
use crate::model::{Origin, Stage};

/// Longest key of a metric, parameter or tag, in characters.
const MAX_KEY: usize = 250;
const MAX_PARAM: usize = 6_000;
const MAX_TAG: usize = 8_000;
const MAX_EXPERIMENT_NAME: usize = 500;
const MAX_EXPERIMENT_TAG: usize = 5_000;
const MAX_METRICS_PER_BATCH: usize = 1_000;
const MAX_PARAMS_OR_TAGS_PER_BATCH: usize = 100;
const MAX_ENTITIES_PER_BATCH: usize = 1_000;
const MAX_ARTIFACT_LOCATION: usize = 2_048;
const MAX_DESCRIPTION: usize = 10_000;
const MAX_REGISTRY_TAG: usize = 100_000;
const MAX_DATASET_NAME: usize = 500;
const MAX_DATASET_DIGEST: usize = 36;
const MAX_DATASET_SOURCE: usize = 65_535;
const MAX_DATASET_SCHEMA: usize = 1_048_575;
const MAX_DATASET_PROFILE: usize = 16_777_215;
const MAX_INPUT_TAG_KEY: usize = 255;
const MAX_INPUT_TAG: usize = 500;
/// MLflow leaves these to its database, or to nobody.
const MAX_ID: usize = 256;
const MAX_MODEL_TYPE: usize = 500;
const MAX_LOGGED_MODEL_NAME: usize = 500;
const MAX_SOURCE_TYPE: usize = 500;
const MAX_URI: usize = 2_048;
/// Most tags or parameters that something is made with, and most datasets or models noted at once.
const MAX_AT_ONCE: usize = 1_000;
/// Most experiments searched at once: with a filter of the longest they stay below what SQLite binds.
const MAX_EXPERIMENTS_SEARCHED: usize = 10_000;
const MAX_DATASETS_SEARCHED: usize = 1_000;
/// Most experiments whose datasets are listed at once.
const MAX_DATASET_EXPERIMENTS: usize = 20;

/// `Missing value for required parameter '…'.`
pub fn missing(path: &str) -> Error {
    Error::Rejected(format!("Missing value for required parameter '{path}'."))
}

/// `Invalid value … for parameter '…' supplied: …`
pub fn invalid(path: &str, value: &Value, why: &str) -> Error {
    let why = if why.is_empty() { ".".to_owned() } else { format!(": {why}") };
    Error::Rejected(format!("Invalid value {value} for parameter '{path}' supplied{why}"))
}

/// Checks a length, in characters.
pub fn length(what: &str, text: &str, max: usize) -> Result<()> {
    if text.chars().nth(max).is_none() {
        return Ok(());
    }
    Err(Error::Rejected(format!("'{what}' exceeds the maximum length of {max} characters")))
}

/// Refuses NUL: PostgreSQL can't keep it, so neither database is given one.
pub fn no_nul(path: &str, text: &str) -> Result<()> {
    if !text.contains('\0') {
        return Ok(());
    }
    let told = format!("Invalid value for parameter '{path}' supplied: it must not hold NUL characters.");
    Err(Error::Rejected(told))
}

/// Checks how many tags or parameters something is made with.
pub fn pairs(what: &str, count: usize) -> Result<()> {
    at_most(what, count, MAX_AT_ONCE)
}

fn at_most(what: &str, count: usize, max: usize) -> Result<()> {
    if count <= max {
        return Ok(());
    }
    Err(Error::Rejected(format!(
        "Invalid value for parameter '{what}' supplied: at most {max} are taken at once, got {count}"
    )))
}

/// Checks an id of something else that is only noted.
pub fn id(path: &str, id: &str) -> Result<()> {
    length(path, id, MAX_ID)
}

/// Checks the name of a run, which is a tag too.
pub fn run_name(name: &str) -> Result<()> {
    length("run_name", name, MAX_TAG)
}

/// Checks who began a run.
pub fn user_id(user: &str) -> Result<()> {
    length("user_id", user, MAX_ID)
}

/// Checks the type of a logged model.
pub fn model_type(kind: &str) -> Result<()> {
    length("model_type", kind, MAX_MODEL_TYPE)
}

/// Checks how much is searched at once; filter and orders were checked when they were read.
pub fn search(search: &Search) -> Result<()> {
    at_most("experiment_ids", search.experiments.len(), MAX_EXPERIMENTS_SEARCHED)?;
    at_most("datasets", search.datasets.len(), MAX_DATASETS_SEARCHED)?;
    search.datasets.iter().try_for_each(|(name, digest)| {
        length("dataset_name", name, MAX_DATASET_NAME)?;
        length("dataset_digest", digest.as_deref().unwrap_or_default(), MAX_DATASET_DIGEST)
    })
}

/// Checks the key of a metric whose history is asked for.
pub fn metric_key(key: &str) -> Result<()> {
    length("metric_key", key, MAX_KEY)
}

/// Checks of how many experiments the datasets are listed.
pub fn dataset_experiments(count: usize) -> Result<()> {
    if count == 0 {
        return Err(Error::Rejected("SearchDatasets request must specify at least one experiment_id.".to_owned()));
    }
    if count <= MAX_DATASET_EXPERIMENTS {
        return Ok(());
    }
    Err(Error::Rejected(format!(
        "SearchDatasets request cannot specify more than {MAX_DATASET_EXPERIMENTS} experiment_ids. Received {count} \
         experiment_ids."
    )))
}

/// Checks what a run read and made.
pub fn uses(uses: &Uses) -> Result<()> {
    let Uses { datasets, model_inputs, model_outputs } = uses;
    at_most("datasets", datasets.len(), MAX_AT_ONCE)?;
    at_most("models", model_inputs.len().max(model_outputs.len()), MAX_AT_ONCE)?;
    datasets.iter().try_for_each(dataset)?;
    let models = model_inputs.iter().chain(model_outputs.iter().map(|output| &output.model));
    models.into_iter().try_for_each(|model| id("model_id", model))
}

/// Refuses to archive what is in a stage where nothing is in use; `given` is the stage as the caller wrote it.
pub fn archiving(given: &str, stage: Stage) -> Result<()> {
    if matches!(stage, Stage::Staging | Stage::Production) {
        return Ok(());
    }
    Err(Error::Rejected(format!(
        "Model version transition cannot archive existing model versions because '{given}' is not an Active stage. Valid \
         stages are ['Staging', 'Production']"
    )))
}

/// Checks the name of an experiment.
pub fn experiment_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::Rejected(format!("Invalid experiment name: '{name}'")));
    }
    length("name", name, MAX_EXPERIMENT_NAME)
}

/// Checks a tag of an experiment.
pub fn experiment_tag(key: &str, value: &str) -> Result<()> {
    name("key", key)?;
    length("key", key, MAX_KEY)?;
    length("value", value, MAX_EXPERIMENT_TAG)
}

/// Checks what a metric, parameter or tag is called: it may be taken for the path of a file.
pub fn name(path: &str, name: &str) -> Result<()> {
    let is_allowed = |c: char| c.is_alphanumeric() || matches!(c, '/' | '_' | '.' | '-' | ' ' | ':');
    if !name.chars().all(is_allowed) {
        let why = "Names may only contain alphanumerics, underscores (_), dashes (-), periods (.), spaces ( ), \
                   colon(:) and slashes (/).";
        return Err(invalid(path, &json!(name), why));
    }
    let plain = normalized(name);
    if plain != name || plain == "." || plain.starts_with("..") || plain.starts_with('/') {
        let why = format!(
            "Names may be treated as files in certain cases, and must not resolve to other names when treated as such. \
             This name would resolve to '{plain}'"
        );
        return Err(invalid(path, &json!(name), &why));
    }
    Ok(())
}

/// The shortest path that means the same, as POSIX has it.
fn normalized(path: &str) -> String {
    let is_absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        match (part, parts.last()) {
            ("..", Some(last)) if *last != ".." => {
                parts.pop();
            }
            ("..", None) if is_absolute => {}
            _ => parts.push(part),
        }
    }
    match (is_absolute, parts.join("/")) {
        (true, rest) => format!("/{rest}"),
        (false, rest) if rest.is_empty() => ".".to_owned(),
        (false, rest) => rest,
    }
}

/// Checks one metric; `path` is where it stands in the request, empty for a request of its own.
pub fn metric(path: &str, metric: &Metric) -> Result<()> {
    name(&below(path, "name"), &metric.key)?;
    if metric.timestamp.0 < 0 {
        let why = format!(
            "metric '{}' (value={}). Timestamp must be a nonnegative long (64-bit integer) ",
            metric.key, metric.value
        );
        return Err(invalid(&below(path, "timestamp"), &json!(metric.timestamp.0), &why));
    }
    length("Metric name", &metric.key, MAX_KEY)
}

/// Checks one parameter.
pub fn param(path: &str, key: &str, value: &str) -> Result<()> {
    name(&below(path, "key"), key)?;
    length("Param key", key, MAX_KEY)?;
    length("Param value", value, MAX_PARAM)
}

/// Checks one tag of a run.
pub fn tag(path: &str, key: &str, value: &str) -> Result<()> {
    name(&below(path, "key"), key)?;
    length(&below(path, "key"), key, MAX_KEY)?;
    length(&below(path, "value"), value, MAX_TAG)
}

/// Checks where an experiment is to keep its files.
pub fn artifact_location(location: &str) -> Result<()> {
    if location.contains(['#', ';']) {
        return Err(Error::Rejected("'artifact_location' URL can't include fragments or params.".to_owned()));
    }
    if let Some((_, query)) = location.split_once('?')
        && query.contains("..")
    {
        return Err(Error::Rejected("Invalid query string: it must not contain '..'".to_owned()));
    }
    length("artifact_location", location, MAX_ARTIFACT_LOCATION)
}

/// Checks the name of a logged model.
pub fn logged_model_name(name: &str) -> Result<()> {
    length("name", name, MAX_LOGGED_MODEL_NAME)?;
    if !name.contains(['/', ':', '.', '%', '"', '\'']) {
        return Ok(());
    }
    Err(Error::Rejected(format!(
        "Invalid model name ('{name}') provided. Model name must be a non-empty string and cannot contain the following \
         characters: ('/', ':', '.', '%', '\"', \"'\")"
    )))
}

/// Checks the description of a registered model or a version of one.
pub fn description(text: &str) -> Result<()> {
    length("description", text, MAX_DESCRIPTION)
}

/// Checks a tag of a registered model or a version of one.
pub fn registry_tag(key: &str, value: &str) -> Result<()> {
    name("key", key)?;
    length("key", key, MAX_KEY)?;
    length("value", value, MAX_REGISTRY_TAG)
}

/// Checks where a version is said to come from.
pub fn origin(origin: &Origin) -> Result<()> {
    let Origin { source, run, run_link, logged_model } = origin;
    length("source", source, MAX_URI)?;
    length("run_link", run_link, MAX_URI)?;
    id("run_id", run)?;
    id("model_id", logged_model)
}

/// Checks where the files of a version are said to be: no path that climbs, and a place of a machine's own disk only below
/// `home`, where the run or logged model it comes from keeps its files.
pub fn version_source(source: &str, home: Option<&str>) -> Result<()> {
    let plain = plain(source);
    let scheme = plain.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
    if scheme.is_none_or(|scheme| scheme == "file" || scheme.contains('/')) {
        return local_source(source, &plain, &self::plain(home.unwrap_or_default()));
    }
    let path = plain.split_once("://").map_or(plain.as_str(), |(_, rest)| rest);
    if plain.contains('\0') || path.split(['/', '?', '#', ':']).any(|part| part == ".." || part == ".") {
        return Err(Error::Rejected(format!(
            "Invalid model version source: '{source}'. If supplying a source as an http, https, local file path, ftp, \
             objectstore, or mlflow-artifacts uri, an absolute path must be provided without relative path references \
             present. Please provide an absolute path."
        )));
    }
    Ok(())
}

/// Checks a source on a machine's own disk: where it really is, below `home`.
fn local_source(source: &str, plain: &str, home: &str) -> Result<()> {
    let bare = |uri: &str| uri.trim_start_matches("file://").trim_start_matches("file:").to_owned();
    let (place, home) = (bare(plain), normalized(&bare(home)));
    if plain.starts_with("file://") && !place.starts_with('/') {
        // A mistake of the caller, but this is how MLflow's clients know it.
        return Err(Error::InvalidState(format!("{source} is not a valid remote uri.")));
    }
    let place = normalized(&place);
    let is_at_home = home.starts_with('/') && (place == home || place.starts_with(&format!("{home}/")));
    if is_at_home && !plain.contains('\0') {
        return Ok(());
    }
    Err(Error::Rejected(format!(
        "Invalid model version source: '{source}'. To use a local path as a model version source, the run_id request \
         parameter has to be specified and the local path has to be contained within the artifact directory of the run \
         specified by the run_id."
    )))
}

/// Decoded until nothing is left to decode, so that no climb hides behind two rounds of escapes.
fn plain(text: &str) -> String {
    let mut plain = text.to_owned();
    for _ in 0..8 {
        let decoded = percent_decoded(&plain);
        if decoded == plain {
            break;
        }
        plain = decoded;
    }
    plain
}

fn percent_decoded(text: &str) -> String {
    let decoded = url::form_urlencoded::parse(format!("a={}", text.replace('&', "%26")).as_bytes())
        .next()
        .map(|(_, value)| value.into_owned());
    decoded.unwrap_or_default()
}

/// Checks what is logged at once.
pub fn batch(batch: &Batch) -> Result<()> {
    let Batch { metrics, params, tags } = batch;
    limit("metrics", metrics.len(), MAX_METRICS_PER_BATCH)?;
    limit("params", params.len(), MAX_PARAMS_OR_TAGS_PER_BATCH)?;
    limit("tags", tags.len(), MAX_PARAMS_OR_TAGS_PER_BATCH)?;
    limit("metrics, params, and tags", metrics.len() + params.len() + tags.len(), MAX_ENTITIES_PER_BATCH)?;
    for (index, one) in metrics.iter().enumerate() {
        metric(&format!("metrics[{index}]"), one)?;
    }
    for (index, (key, value)) in params.iter().enumerate() {
        param(&format!("params[{index}]"), key, value)?;
    }
    for (index, (key, value)) in tags.iter().enumerate() {
        tag(&format!("tags[{index}]"), key, value)?;
    }
    let mut seen = std::collections::HashSet::new();
    let twice: Vec<_> = params.iter().map(|(key, _)| key.as_str()).filter(|key| !seen.insert(*key)).collect();
    if twice.is_empty() {
        return Ok(());
    }
    let keys = twice.iter().map(|key| format!("'{key}'")).collect::<Vec<_>>().join(", ");
    Err(Error::Rejected(format!(
        "Duplicate parameter keys have been submitted: [{keys}]. Please ensure the request contains only one param value \
         per param key."
    )))
}

/// Checks a dataset and how it was used.
fn dataset(input: &DatasetInput) -> Result<()> {
    let DatasetInput { name, digest, source_type, source, schema, profile, tags } = input;
    length("source_type", source_type, MAX_SOURCE_TYPE)?;
    at_most("tags", tags.len(), MAX_AT_ONCE)?;
    length("name", name, MAX_DATASET_NAME)?;
    length("digest", digest, MAX_DATASET_DIGEST)?;
    length("source", source, MAX_DATASET_SOURCE)?;
    length("schema", schema.as_deref().unwrap_or_default(), MAX_DATASET_SCHEMA)?;
    length("profile", profile.as_deref().unwrap_or_default(), MAX_DATASET_PROFILE)?;
    for (key, value) in tags {
        length("key", key, MAX_INPUT_TAG_KEY)?;
        length("value", value, MAX_INPUT_TAG)?;
    }
    Ok(())
}

fn limit(what: &str, count: usize, max: usize) -> Result<()> {
    if count <= max {
        return Ok(());
    }
    Err(Error::Rejected(format!(
        "A batch logging request can contain at most {max} {what}. Got {count} {what}. Please split up {what} across \
         multiple requests and try again."
    )))
}

fn below(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_be_another_file_is_refused() {
        for good in ["loss", "val/loss", "a.b-c_d e:f", "größe", ""] {
            assert_eq!(name("key", good).is_ok(), !good.is_empty(), "{good:?}");
        }
        for bad in [".", "..", "../a", "a/../b", "a//b", "/a", "a/", "./a", "a\0", "a;b", "\"", "a\nb"] {
            assert!(name("key", bad).is_err(), "{bad:?}");
        }
        let told = name("params[3].key", "a/../b").unwrap_err().to_string();
        assert!(
            told.starts_with("Invalid value \"a/../b\" for parameter 'params[3].key' supplied: Names may"),
            "{told}"
        );
        assert!(told.ends_with("This name would resolve to 'b'"), "{told}");
    }

    #[test]
    fn a_local_source_lies_below_the_files_of_its_run() {
        let home = Some("file:///srv/a+b/artifacts");
        for good in ["", "/model", "/.", "/model/..", "/model/%2e%2e/other"] {
            assert!(version_source(&format!("file:///srv/a+b/artifacts{good}"), home).is_ok(), "{good}");
        }
        assert!(version_source("/srv/a+b/artifacts/model", home).is_ok());
        for bad in ["/..", "/%2e%2e", "/%252e%252e/secret", "/../artifacts2", "/model/../../x", "/a%00b"] {
            assert!(version_source(&format!("file:///srv/a+b/artifacts{bad}"), home).is_err(), "{bad}");
        }
        for elsewhere in ["file:///tmp", "/tmp", "relative", "file:relative"] {
            assert!(version_source(elsewhere, home).is_err(), "{elsewhere}");
            assert!(version_source(elsewhere, None).is_err(), "{elsewhere}");
        }
        let told = version_source("file://host/path", home).unwrap_err().to_string();
        assert_eq!(told, "file://host/path is not a valid remote uri.");
    }

    #[test]
    fn a_batch_has_limits_and_no_parameter_twice() {
        let pairs = |count: usize| (0..count).map(|n| (format!("k{n}"), String::new())).collect::<Vec<_>>();
        let told = |what: Batch| batch(&what).unwrap_err().to_string();
        assert!(batch(&Batch { params: pairs(100), tags: pairs(100), ..Batch::default() }).is_ok());
        let many = told(Batch { params: pairs(101), ..Batch::default() });
        assert!(many.starts_with("A batch logging request can contain at most 100 params. Got 101 params."), "{many}");
        let twice = told(Batch { params: [pairs(1), pairs(2)].concat(), ..Batch::default() });
        assert!(twice.starts_with("Duplicate parameter keys have been submitted: ['k0']"), "{twice}");
        let long = told(Batch { params: vec![("k".into(), "x".repeat(6_001))], ..Batch::default() });
        assert_eq!(long, "'Param value' exceeds the maximum length of 6000 characters");
    }
}
