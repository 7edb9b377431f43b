//! Traces and what is thought of them, in the second and the third version of the API.
//!
//! Both have the same paths where they mean the same. A trace that is started tells by its body which of the two it is.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::IntoResponse;
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::artifacts::of_this_registry;
use super::experiments::experiment_id;
use super::request::{Fields, Path, missing};
use super::{Answer, Mlflow, Refusal};
use crate::error::{Entity, Error};
use crate::search::traces::{Condition, filter, order};
use crate::tracking::Millis;
use crate::tracking::correlation::npmi;
use crate::tracking::traces::{
    ARTIFACT_LOCATION, Counts, Cursor, Doomed, MAX_PAGE, SPANS_LOCATION, Trace, TraceEnd, TraceSearch, TraceState,
    searched, tag, trace_ids,
};

mod answer;
mod read;

/// The file in which a client keeps the spans of a trace, where it does not send them.
const FILE: &str = "traces.json";

pub(super) fn routes() -> Router<Mlflow> {
    Router::new()
        .route("/mlflow/traces", post(start).get(search_v2))
        .route("/mlflow/traces/search", post(search))
        .route("/mlflow/traces/get", get(with_spans))
        .route("/mlflow/traces/batchGet", get(many_with_spans))
        .route("/mlflow/traces/batchGetInfos", post(many))
        .route("/mlflow/traces/delete-traces", post(delete))
        .route("/mlflow/traces/link-to-run", post(link))
        .route("/mlflow/traces/calculate-filter-correlation", post(correlation))
        .route("/mlflow/traces/{trace_id}", get(by_id).patch(end))
        .route("/mlflow/traces/{trace_id}/info", get(by_id_v2))
        .route("/mlflow/traces/{trace_id}/tags", patch(set_tag).delete(delete_tag))
        .route("/mlflow/traces/{trace_id}/assessments", post(add_assessment))
        .route(
            "/mlflow/traces/{trace_id}/assessments/{assessment_id}",
            get(assessment).patch(change_assessment).delete(delete_assessment),
        )
        .route("/mlflow/get-trace-artifact", get(file))
}

async fn start(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    if let Some(trace) = fields.object("trace")? {
        let mut trace = read::trace(&trace)?;
        // So told, its client sends the spans here and not into a file.
        trace.tags.insert(SPANS_LOCATION.0.to_owned(), SPANS_LOCATION.1.to_owned());
        let trace = mlflow.store.start_trace(&trace).await?;
        return Ok(Json(json!({"trace": {"trace_info": answer::trace(trace)}})).into_response());
    }
    let trace = Trace {
        id: Uuid::new_v4().simple().to_string(),
        experiment: experiment_id(&fields.required("experiment_id")?)?,
        request_time: fields.millis("timestamp_ms")?.unwrap_or_else(Millis::now),
        duration: None,
        state: TraceState::InProgress,
        client_request_id: None,
        request_preview: None,
        response_preview: None,
        metadata: fields.pairs("request_metadata")?,
        tags: fields.pairs("tags")?,
        assessments: Vec::new(),
    };
    let trace = mlflow.store.start_trace(&trace.checked()?).await?;
    Ok(super::answer::one("trace_info", answer::trace_v2(trace)))
}

async fn end(State(mlflow): State<Mlflow>, Path(id): Path<String>, fields: Fields) -> Answer {
    let end = TraceEnd {
        time: fields.millis("timestamp_ms")?.unwrap_or_else(Millis::now),
        state: read::state(&fields, "status")?,
        metadata: fields.pairs("request_metadata")?,
        tags: fields.pairs("tags")?,
    };
    let trace = mlflow.store.end_trace(&id, &end.checked()?).await?;
    Ok(super::answer::one("trace_info", answer::trace_v2(trace)))
}

async fn by_id(State(mlflow): State<Mlflow>, Path(id): Path<String>) -> Answer {
    let trace = mlflow.store.trace(&id).await?;
    Ok(Json(json!({"trace": {"trace_info": answer::trace(trace)}})).into_response())
}

async fn by_id_v2(State(mlflow): State<Mlflow>, Path(id): Path<String>) -> Answer {
    Ok(super::answer::one("trace_info", answer::trace_v2(mlflow.store.trace(&id).await?)))
}

async fn with_spans(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let id = fields.required("trace_id")?;
    let allow_partial = fields.truth("allow_partial")?.unwrap_or(false);
    let Some((trace, spans)) = mlflow.store.traces_with_spans(std::slice::from_ref(&id)).await?.pop() else {
        return Err(Entity::Trace(id).into());
    };
    if !allow_partial && trace.announced_spans().is_some_and(|announced| announced > spans.len() as u64) {
        let message = format!("Trace with ID {id} is not fully exported yet, please try again later.");
        return Err(Refusal::missing(message));
    }
    Ok(super::answer::one("trace", answer::trace_with_spans((trace, spans))))
}

/// The ids a caller names.
fn ids(fields: &Fields) -> Result<Vec<String>, Refusal> {
    let ids = fields.texts("trace_ids")?;
    trace_ids(&ids)?;
    Ok(ids)
}

/// Whether a trace belongs to one of the experiments a caller names, if it names any.
fn scope(fields: &Fields) -> Result<impl Fn(&Trace) -> bool, Refusal> {
    let named = fields.texts("experiment_ids")?;
    let experiments = named.iter().map(|id| experiment_id(id)).collect::<Result<Vec<_>, _>>()?;
    Ok(move |trace: &Trace| experiments.is_empty() || experiments.contains(&trace.experiment))
}

/// Traces whose spans have not all come yet are left out, as those that do not exist are.
async fn many_with_spans(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let is_meant = scope(&fields)?;
    let mut traces = mlflow.store.traces_with_spans(&ids(&fields)?).await?;
    let is_whole = |trace: &Trace, spans: u64| trace.announced_spans().is_none_or(|announced| announced <= spans);
    traces.retain(|(trace, spans)| is_meant(trace) && is_whole(trace, spans.len() as u64));
    Ok(super::answer::one("traces", traces.into_iter().map(answer::trace_with_spans).collect()))
}

async fn many(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let is_meant = scope(&fields)?;
    let traces = mlflow.store.traces(&ids(&fields)?).await?;
    Ok(super::answer::one("trace_infos", traces.into_iter().filter(is_meant).map(answer::trace).collect()))
}

fn conditions(fields: &Fields, name: &str) -> Result<Vec<Condition>, Refusal> {
    filter(&fields.text_or_empty(name)?).map_err(|problem| Refusal::invalid(problem.0))
}

async fn found(mlflow: &Mlflow, fields: &Fields, experiments: Vec<i64>, write: fn(Trace) -> Value) -> Answer {
    searched(&experiments)?;
    let from = Cursor::parse(&fields.text_or_empty("page_token")?);
    let search = TraceSearch {
        experiments,
        conditions: conditions(fields, "filter")?,
        orders: order(&fields.texts("order_by")?).map_err(|problem| Refusal::invalid(problem.0))?,
        from: from.ok_or_else(|| Refusal::invalid("Invalid page token: take one from an answer."))?,
        limit: fields.limit(100, MAX_PAGE)?,
    };
    let page = mlflow.store.search_traces(&search).await?;
    let traces = page.traces.into_iter().map(write).collect();
    let mut answer = Map::from_iter([("traces".to_owned(), Value::Array(traces))]);
    if let Some(next) = page.next {
        answer.insert("next_page_token".to_owned(), next.token().into());
    }
    Ok(Json(Value::Object(answer)).into_response())
}

async fn search(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let locations = fields.objects("locations")?;
    if locations.is_empty() {
        return Err(missing("locations"));
    }
    let experiments = locations.iter().map(read::location).collect::<Result<_, _>>()?;
    found(&mlflow, &fields, experiments, answer::trace).await
}

fn experiments(fields: &Fields) -> Result<Vec<i64>, Refusal> {
    let ids = fields.texts("experiment_ids")?;
    if ids.is_empty() {
        return Err(missing("experiment_ids"));
    }
    ids.iter().map(|id| experiment_id(id)).collect()
}

async fn search_v2(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let experiments = experiments(&fields)?;
    found(&mlflow, &fields, experiments, answer::trace_v2).await
}

async fn correlation(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let required = |name: &str| fields.required(name).and_then(|_| conditions(&fields, name));
    let (first, second) = (required("filter_string1")?, required("filter_string2")?);
    let base = conditions(&fields, "base_filter")?;
    let experiments = experiments(&fields)?;
    searched(&experiments)?;
    let counts = mlflow.store.count_traces(&experiments, &base, &first, &second).await?;
    let (plain, smoothed) = npmi(counts);
    let Counts { first, second, both, total } = counts;
    let mut answer = json!({
        "filter1_count": first,
        "filter2_count": second,
        "joint_count": both,
        "total_count": total,
    });
    for (name, value) in [("npmi", plain), ("npmi_smoothed", smoothed)] {
        if let Some(value) = value {
            answer[name] = value.into();
        }
    }
    Ok(Json(answer).into_response())
}

async fn delete(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let experiment = experiment_id(&fields.required("experiment_id")?)?;
    let (time, named) = (fields.millis("max_timestamp_millis")?, fields.texts("request_ids")?);
    let at_most = fields.integer("max_traces")?;
    let doomed = Doomed::of(named, time, at_most)?;
    let gone = mlflow.store.delete_traces(experiment, &doomed).await?;
    Ok(super::answer::one("traces_deleted", gone.into()))
}

async fn set_tag(State(mlflow): State<Mlflow>, Path(id): Path<String>, fields: Fields) -> Answer {
    let key = fields.required("key")?;
    let value = tag(&key, fields.text_or_empty("value")?)?;
    mlflow.store.change_trace_tag(&id, &key, Some(&value)).await?;
    Ok(super::answer::nothing())
}

async fn delete_tag(State(mlflow): State<Mlflow>, Path(id): Path<String>, fields: Fields) -> Answer {
    mlflow.store.change_trace_tag(&id, &fields.required("key")?, None).await?;
    Ok(super::answer::nothing())
}

async fn link(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let traces = ids(&fields)?;
    mlflow.store.link_traces(&fields.required("run_id")?, &traces).await?;
    Ok(super::answer::nothing())
}

async fn add_assessment(State(mlflow): State<Mlflow>, Path(trace): Path<String>, fields: Fields) -> Answer {
    let fields = fields.object("assessment")?.ok_or_else(|| missing("assessment"))?;
    let assessment = mlflow.store.add_assessment(&read::assessment(&fields, &trace)?).await?;
    Ok(super::answer::one("assessment", answer::assessment(assessment)))
}

async fn assessment(State(mlflow): State<Mlflow>, Path((trace, id)): Path<(String, String)>) -> Answer {
    let assessment = mlflow.store.assessment(&trace, &id).await?;
    Ok(super::answer::one("assessment", answer::assessment(assessment)))
}

async fn change_assessment(
    State(mlflow): State<Mlflow>,
    Path((trace, id)): Path<(String, String)>,
    fields: Fields,
) -> Answer {
    let change = read::assessment_change(&fields)?;
    let assessment = mlflow.store.change_assessment(Millis::now(), &trace, &id, &change).await?;
    Ok(super::answer::one("assessment", answer::assessment(assessment)))
}

async fn delete_assessment(State(mlflow): State<Mlflow>, Path((trace, id)): Path<(String, String)>) -> Answer {
    mlflow.store.delete_assessment(&trace, &id).await?;
    Ok(super::answer::nothing())
}

/// The spans of a trace as a file: of those kept here, or as its client has put it.
async fn file(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let Some(id) = fields.text("request_id")?.filter(|id| !id.is_empty()) else {
        let message = "Request must include the \"request_id\" query parameter.";
        return Err(Refusal::new(axum::http::StatusCode::BAD_REQUEST, "BAD_REQUEST", message));
    };
    let Some((trace, spans)) = mlflow.store.traces_with_spans(std::slice::from_ref(&id)).await?.pop() else {
        return Err(Entity::Trace(id).into());
    };
    if let (true, Some(location)) = (spans.is_empty(), trace.tags.get(ARTIFACT_LOCATION)) {
        return mlflow.send(&of_this_registry(location, FILE)?, &HeaderMap::new()).await;
    }
    let body = serde_json::to_vec(&answer::file(spans)).map_err(|error| Error::Internal(error.into()))?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment; filename=traces.json")),
    ];
    Ok((headers, body).into_response())
}
