//! Requests into the domain. Every conversion names every field, so that none is forgotten, and no text holds NUL.

use std::collections::{BTreeMap, HashMap};

use verdict_api::registry as api;
use verdict_api::registry::get_experiment_request::Which;

use crate::convert;
use crate::error::{Error, Result};
use crate::model::Stage;
use crate::search::{self, Order, Subject};
use crate::tracking::{
    Batch, DatasetInput, ExperimentDraft, ExperimentRef, LoggedModelStatus, Metric, Millis, ModelOutput, RunStatus,
    Search, Uses, View, limits, page,
};

const DEFAULT_HISTORY: i32 = 1_000;
const MAX_HISTORY: i32 = 25_000;

/// Takes a text.
pub(super) fn text(field: &str, text: String) -> Result<String> {
    limits::no_nul(field, &text)?;
    Ok(text)
}

/// Takes a text that must not be empty.
pub(super) fn required(field: &str, text: String) -> Result<String> {
    if text.is_empty() {
        return Err(limits::missing(field));
    }
    self::text(field, text)
}

/// Takes what must be given.
pub(super) fn given<T>(field: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| limits::missing(field))
}

/// Takes keys and values.
pub(super) fn pairs(field: &str, pairs: HashMap<String, String>) -> Result<BTreeMap<String, String>> {
    pairs.into_iter().map(|(key, value)| Ok((text(field, key)?, text(field, value)?))).collect()
}

fn unknown(field: &str, number: i32) -> Error {
    limits::invalid(field, &number.into(), "it must be one of the values of the contract")
}

/// What an enumeration's number says; None for UNSPECIFIED.
fn word<T: TryFrom<i32> + Default + PartialEq>(field: &str, number: i32) -> Result<Option<T>> {
    let word = T::try_from(number).map_err(|_| unknown(field, number))?;
    Ok(Some(word).filter(|word| *word != T::default()))
}

pub(super) fn view(number: i32) -> Result<View> {
    Ok(match word::<api::LifecycleView>("view", number)? {
        None | Some(api::LifecycleView::Unspecified | api::LifecycleView::Active) => View::Active,
        Some(api::LifecycleView::Deleted) => View::Deleted,
        Some(api::LifecycleView::All) => View::All,
    })
}

pub(super) fn run_status(number: i32) -> Result<Option<RunStatus>> {
    Ok(match word::<api::RunStatus>("status", number)? {
        None | Some(api::RunStatus::Unspecified) => None,
        Some(api::RunStatus::Running) => Some(RunStatus::Running),
        Some(api::RunStatus::Scheduled) => Some(RunStatus::Scheduled),
        Some(api::RunStatus::Finished) => Some(RunStatus::Finished),
        Some(api::RunStatus::Failed) => Some(RunStatus::Failed),
        Some(api::RunStatus::Killed) => Some(RunStatus::Killed),
    })
}

pub(super) fn logged_model_status(number: i32) -> Result<LoggedModelStatus> {
    match word::<api::LoggedModelStatus>("status", number)? {
        None | Some(api::LoggedModelStatus::Unspecified) => Err(limits::missing("status")),
        Some(api::LoggedModelStatus::Pending) => Ok(LoggedModelStatus::Pending),
        Some(api::LoggedModelStatus::Ready) => Ok(LoggedModelStatus::Ready),
        Some(api::LoggedModelStatus::UploadFailed) => Ok(LoggedModelStatus::UploadFailed),
    }
}

pub(super) fn stage(field: &str, number: i32) -> Result<Stage> {
    match word::<api::Stage>(field, number)? {
        None | Some(api::Stage::Unspecified) => Err(limits::missing(field)),
        Some(api::Stage::None) => Ok(Stage::None),
        Some(api::Stage::Staging) => Ok(Stage::Staging),
        Some(api::Stage::Production) => Ok(Stage::Production),
        Some(api::Stage::Archived) => Ok(Stage::Archived),
    }
}

pub(super) fn offset(token: &str) -> Result<u64> {
    page::offset(token)
}

/// Checks how many values of a metric are wanted; 0 for the default.
pub(super) fn history_size(size: i32) -> Result<u32> {
    let size = if size == 0 { DEFAULT_HISTORY } else { size };
    let fits = u32::try_from(size).ok().filter(|_| (1..=MAX_HISTORY).contains(&size));
    fits.ok_or_else(|| Error::invalid("INVALID_PAGE_SIZE", "page_size", format!("must be 1 to {MAX_HISTORY}, or 0")))
}

pub(super) fn experiment_draft(request: api::CreateExperimentRequest, root: &str) -> Result<ExperimentDraft> {
    let api::CreateExperimentRequest { name, artifact_location, tags } = request;
    let place = text("artifact_location", artifact_location)?;
    ExperimentDraft::new(required("name", name)?, Some(place), root, pairs("tags", tags)?)
}

pub(super) fn experiment_ref(request: api::GetExperimentRequest) -> Result<ExperimentRef> {
    match given("experiment_id", request.which)? {
        Which::ExperimentId(id) => Ok(ExperimentRef::Id(id)),
        Which::Name(name) => Ok(ExperimentRef::Name(required("name", name)?)),
    }
}

/// What is searched, of the active and with no experiments yet.
pub(super) fn search(
    subject: Subject,
    filter: String,
    order_by: Vec<String>,
    page_size: i32,
    page_token: String,
) -> Result<Search> {
    order_by.iter().try_for_each(|clause| limits::no_nul("order_by", clause))?;
    Ok(Search {
        conditions: search::filter(subject, &text("filter", filter)?)?,
        orders: search::order(subject, &order_by)?,
        view: View::Active,
        experiments: Vec::new(),
        datasets: Vec::new(),
        offset: page::offset(&page_token)?,
        limit: convert::page_size(page_size)?,
    })
}

pub(super) fn logged_model_search(request: api::SearchLoggedModelsRequest) -> Result<Search> {
    let api::SearchLoggedModelsRequest {
        experiment_ids: experiments,
        filter,
        datasets,
        order_by,
        page_size,
        page_token,
    } = request;
    let (names, descending): (Vec<_>, Vec<_>) =
        order_by.into_iter().map(|api::LoggedModelOrder { field_name, descending }| (field_name, descending)).unzip();
    let dataset = |api::LoggedModelDataset { name, digest }| {
        let digest = text("datasets.digest", digest)?;
        Ok((required("datasets.name", name)?, Some(digest).filter(|digest| !digest.is_empty())))
    };
    let datasets = datasets.into_iter().map(dataset).collect::<Result<_>>()?;
    let search = search(Subject::LoggedModels, filter, names, page_size, page_token)?;
    let turned = search.orders.into_iter().zip(descending);
    let orders = turned.map(|(order, descending)| Order { ascending: !descending, ..order }).collect();
    let search = Search { experiments, datasets, orders, ..search };
    limits::search(&search)?;
    Ok(search)
}

fn metric(at: usize, metric: api::Metric) -> Result<Metric> {
    let api::Metric { key, value, timestamp_ms, step, model_id, dataset_name, dataset_digest } = metric;
    let field = |name: &str| format!("metrics[{at}].{name}");
    let optional =
        |name: &str, value: String| Ok::<_, Error>(Some(text(&field(name), value)?).filter(|v| !v.is_empty()));
    Ok(Metric {
        key: required(&field("key"), key)?,
        value,
        timestamp: Millis(timestamp_ms),
        step,
        model: optional("model_id", model_id)?,
        dataset: optional("dataset_name", dataset_name)?.zip(optional("dataset_digest", dataset_digest)?),
    })
}

pub(super) fn batch(request: api::LogBatchRequest) -> Result<(String, Batch)> {
    let api::LogBatchRequest { run_id, metrics, params, tags } = request;
    let pair = |field: &str, at: usize, key: String, value: String| {
        Ok((required(&format!("{field}[{at}].key"), key)?, text(&format!("{field}[{at}].value"), value)?))
    };
    let param = |(at, api::Param { key, value })| pair("params", at, key, value);
    let tag = |(at, api::Tag { key, value })| pair("tags", at, key, value);
    let batch = Batch {
        metrics: metrics.into_iter().enumerate().map(|(at, one)| metric(at, one)).collect::<Result<_>>()?,
        params: params.into_iter().enumerate().map(param).collect::<Result<_>>()?,
        tags: tags.into_iter().enumerate().map(tag).collect::<Result<_>>()?,
    };
    limits::batch(&batch)?;
    Ok((required("run_id", run_id)?, batch))
}

fn dataset(at: usize, input: api::DatasetInput) -> Result<DatasetInput> {
    let api::DatasetInput { name, digest, source_type, source, schema, profile, tags } = input;
    let field = |name: &str| format!("datasets[{at}].{name}");
    Ok(DatasetInput {
        name: required(&field("name"), name)?,
        digest: required(&field("digest"), digest)?,
        source_type: required(&field("source_type"), source_type)?,
        source: required(&field("source"), source)?,
        schema: schema.map(|schema| text(&field("schema"), schema)).transpose()?,
        profile: profile.map(|profile| text(&field("profile"), profile)).transpose()?,
        tags: pairs(&field("tags"), tags)?,
    })
}

pub(super) fn inputs(request: api::LogInputsRequest) -> Result<(String, Uses)> {
    let api::LogInputsRequest { run_id, datasets, model_ids } = request;
    let uses = Uses {
        datasets: datasets.into_iter().enumerate().map(|(at, one)| dataset(at, one)).collect::<Result<_>>()?,
        model_inputs: model_ids.into_iter().map(|id| required("model_ids", id)).collect::<Result<_>>()?,
        model_outputs: Vec::new(),
    };
    limits::uses(&uses)?;
    Ok((required("run_id", run_id)?, uses))
}

pub(super) fn outputs(request: api::LogOutputsRequest) -> Result<(String, Uses)> {
    let api::LogOutputsRequest { run_id, models } = request;
    let output = |api::ModelOutput { model_id, step }| Ok(ModelOutput { model: required("model_id", model_id)?, step });
    let model_outputs = models.into_iter().map(output).collect::<Result<_>>()?;
    let uses = Uses { model_outputs, ..Uses::default() };
    limits::uses(&uses)?;
    Ok((required("run_id", run_id)?, uses))
}
