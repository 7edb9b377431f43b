//! GraphQL, for MLflow's web page: the calls of the REST API under other names.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_graphql::dynamic::{ResolverContext, Schema};
use async_graphql::parser::parse_query;
use async_graphql::parser::types::{DocumentOperations, OperationDefinition};
use async_graphql::{Error, Lookahead, Request, Value, Variables};
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use serde_json::{Map, Value as JsonValue, json};

use super::refusal::Refusal;
use super::request::Fields;
use super::{Answer, Mlflow, answer, artifacts, experiments, metrics, registered, runs};
use crate::search::{Attribute, Condition, Field, Op, Value as Wanted};
use crate::tracking::{Search, View};

mod limits;
mod schema;

/// Most versions that are shown with so many runs.
const MAX_VERSIONS: u32 = 10_000;
/// Most experiments, and most runs for their versions, that one query is about.
const IDS_AT_ONCE: usize = 1_000;

/// Longest message about what can't be read, in bytes.
const MAX_TOLD: usize = 500;

/// The one path.
pub(super) fn routes() -> anyhow::Result<Router<Mlflow>> {
    let schema = Arc::new(schema::build()?);
    let answer = move |State(mlflow): State<Mlflow>, fields: Fields| {
        let schema = schema.clone();
        async move { execute(&schema, mlflow, &fields).await }
    };
    Ok(Router::new().route("/graphql", get(answer.clone()).post(answer)))
}

#[derive(Serialize)]
struct Executed {
    data: Option<Value>,
    errors: Option<Vec<String>>,
}

impl Executed {
    fn refused(message: impl ToString) -> Self {
        Self { data: None, errors: Some(vec![message.to_string()]) }
    }
}

async fn execute(schema: &Schema, mlflow: Mlflow, fields: &Fields) -> Answer {
    let query = fields.required("query")?;
    if query.len() > limits::MAX_BYTES {
        let told = format!("A query may have at most {} bytes, got {}", limits::MAX_BYTES, query.len());
        return Err(Refusal::invalid(told));
    }
    let variables = match fields.value("variables") {
        None => JsonValue::Null,
        Some(object @ JsonValue::Object(_)) => object.clone(),
        Some(_) => return Err(Refusal::invalid("Invalid value for parameter 'variables': it must be an object")),
    };
    let mut document = match parse_query(&query) {
        Ok(document) => document,
        Err(error) => {
            // It quotes the line that it is about, and that can be long.
            let mut told = format!("Syntax Error: {error}");
            told.truncate(told.floor_char_boundary(MAX_TOLD));
            return Ok(Json(Executed::refused(told)).into_response());
        }
    };
    if let Err(told) = limits::check(&document) {
        return Ok(Json(Executed::refused(told)).into_response());
    }
    // Which part of the web page asks: it says so, and nothing depends on it.
    let forget =
        |operation: &mut OperationDefinition| operation.directives.retain(|one| one.node.name.node != "component");
    match &mut document.operations {
        DocumentOperations::Single(operation) => forget(&mut operation.node),
        DocumentOperations::Multiple(operations) => operations.values_mut().for_each(|one| forget(&mut one.node)),
    }
    let mut request = Request::new(query).variables(Variables::from_json(variables)).data(mlflow);
    if let Some(name) = fields.text("operationName")?.filter(|name| !name.is_empty()) {
        request = request.operation_name(name);
    }
    request.set_parsed_query(document);
    let answered = schema.execute(request).await;
    let errors: Vec<String> = answered.errors.into_iter().map(|error| error.message).collect();
    let errors = Some(errors).filter(|errors| !errors.is_empty());
    let data = Some(answered.data).filter(|data| *data != Value::Null);
    Ok(Json(Executed { data, errors }).into_response())
}

/// The fields of the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Root {
    GetExperiment,
    GetMetricHistoryBulkInterval,
    GetRun,
    ListArtifacts,
    SearchDatasets,
    SearchModelVersions,
    SearchRuns,
    Test,
}

impl Root {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "mlflowGetExperiment" => Self::GetExperiment,
            "mlflowGetMetricHistoryBulkInterval" => Self::GetMetricHistoryBulkInterval,
            "mlflowGetRun" => Self::GetRun,
            "mlflowListArtifacts" => Self::ListArtifacts,
            "mlflowSearchDatasets" => Self::SearchDatasets,
            "mlflowSearchModelVersions" => Self::SearchModelVersions,
            "mlflowSearchRuns" => Self::SearchRuns,
            "test" | "testMutation" => Self::Test,
            _ => return None,
        })
    }

    /// Makes the call; the answer is JSON as over REST.
    async fn resolve(self, context: &ResolverContext<'_>) -> Result<JsonValue, Error> {
        let told = |refusal: Refusal| Error::new(refusal.message());
        let mlflow = context.data::<Mlflow>()?;
        if self == Self::Test {
            let echo = context.args.get("inputString").and_then(|text| text.string().ok().map(str::to_owned));
            return Ok(json!({"output": echo}));
        }
        let input: Map<String, JsonValue> = match context.args.get("input") {
            Some(input) if !input.is_null() => input.deserialize()?,
            _ => Map::new(),
        };
        let fields = Fields::from_map(input.into_iter().map(|(name, value)| (schema::snake(&name), value)).collect());
        let ahead = context.ctx.look_ahead();
        let answered = match self {
            Self::GetExperiment => experiments::get_by_id(mlflow, &fields).await,
            Self::GetMetricHistoryBulkInterval => metrics::interval(mlflow, &fields).await,
            Self::GetRun => match runs::get_by_id(mlflow, &fields).await {
                Ok(mut answer) => beside(mlflow, &ahead.field("run"), vec![&mut answer["run"]]).await.map(|()| answer),
                refused => refused,
            },
            Self::ListArtifacts => artifacts::files_of_run(mlflow, &fields).await,
            Self::SearchDatasets => runs::datasets(mlflow, &fields).await,
            Self::SearchModelVersions => registered::versions(mlflow, &fields).await,
            Self::SearchRuns => match runs::found(mlflow, &fields).await {
                Ok(mut answer) => {
                    let runs = answer["runs"].as_array_mut().into_iter().flatten().collect();
                    beside(mlflow, &ahead.field("runs"), runs).await.map(|()| answer)
                }
                refused => refused,
            },
            Self::Test => Ok(JsonValue::Null),
        };
        answered.map_err(told)
    }
}

/// Adds to runs what is asked for beside them: their experiments and the versions that come from them.
async fn beside(mlflow: &Mlflow, ahead: &Lookahead<'_>, mut runs: Vec<&mut JsonValue>) -> Result<(), Refusal> {
    if ahead.field("experiment").exists() {
        let id = |run: &JsonValue| run["info"]["experiment_id"].as_str().and_then(|id| id.parse::<i64>().ok());
        let ids: BTreeSet<i64> = runs.iter().filter_map(|run| id(run)).collect();
        let mut found = Vec::new();
        for some in Vec::from_iter(ids).chunks(IDS_AT_ONCE) {
            let search = Search { experiments: some.to_vec(), ..everything() };
            let page = mlflow.store.experiments(&search).await?;
            found.extend(page.items.into_iter().map(|one| (one.id, answer::experiment(one))));
        }
        for run in &mut runs {
            let of_run = found.iter().find(|(one, _)| Some(*one) == id(run));
            run["experiment"] = of_run.map(|(_, experiment)| experiment.clone()).unwrap_or_default();
        }
    }
    if ahead.field("modelVersions").exists() {
        for some in runs.chunks_mut(IDS_AT_ONCE) {
            let ids = some.iter().filter_map(|run| run["info"]["run_id"].as_str().map(str::to_owned)).collect();
            let field = Field::Attribute(Attribute::RunId);
            let conditions = vec![Condition { field, op: Op::In, value: Wanted::Texts(ids) }];
            let found = mlflow.store.search_versions(&Search { conditions, ..everything() }).await?.items;
            let found: Vec<JsonValue> = found.into_iter().map(answer::version).collect();
            for run in some {
                let of_run = found.iter().filter(|version| version["run_id"] == run["info"]["run_id"]);
                run["model_versions"] = of_run.cloned().collect();
            }
        }
    }
    Ok(())
}

fn everything() -> Search {
    let (conditions, orders, experiments, datasets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    Search { conditions, orders, view: View::All, experiments, datasets, offset: 0, limit: MAX_VERSIONS }
}
