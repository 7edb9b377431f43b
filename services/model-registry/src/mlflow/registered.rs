//! Registered models and their versions.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::{delete as delete_of, get, patch, post};
use serde_json::Value;

use super::bodies::VersionBody;
use super::request::{Fields, missing};
use super::{Answer, Mlflow, Refusal, answer};
use crate::files::VERSIONS;
use crate::model::{AliasMove, ModelDraft, Origin, Stage, TagChange, Update, Version};
use crate::names::{AliasName, ModelName, Reference, VersionId};
use crate::registration::{self, Registration};
use crate::search::Subject;
use crate::store::Call;
use crate::tracking::{PROXY, Page, Search, View, limits};

/// How many copies a source is followed through.
const MAX_COPIES: usize = 32;

pub(super) fn routes() -> Router<Mlflow> {
    Router::new()
        .route("/mlflow/registered-models/create", post(create))
        .route("/mlflow/registered-models/get", get(by_name))
        .route("/mlflow/registered-models/search", get(search))
        .route("/mlflow/registered-models/rename", post(rename))
        .route("/mlflow/registered-models/update", patch(update))
        .route("/mlflow/registered-models/delete", delete_of(delete))
        .route("/mlflow/registered-models/get-latest-versions", get(latest_versions).post(latest_versions))
        .route("/mlflow/registered-models/set-tag", post(set_tag))
        .route("/mlflow/registered-models/delete-tag", delete_of(delete_tag))
        .route("/mlflow/registered-models/alias", get(by_alias).post(set_alias).delete(delete_alias))
        .route("/mlflow/model-versions/create", post(create_version))
        .route("/mlflow/model-versions/get", get(version))
        .route("/mlflow/model-versions/search", get(search_versions))
        .route("/mlflow/model-versions/update", patch(update_version))
        .route("/mlflow/model-versions/transition-stage", post(move_to_stage))
        .route("/mlflow/model-versions/delete", delete_of(delete_version))
        .route("/mlflow/model-versions/get-download-uri", get(download_uri))
        .route("/mlflow/model-versions/set-tag", post(set_version_tag))
        .route("/mlflow/model-versions/delete-tag", delete_of(delete_version_tag))
}

impl Mlflow {
    /// Answers a call that has changed something: watches look at once.
    fn changed(&self, response: Response) -> Answer {
        self.feed.wake();
        Ok(response)
    }

    async fn one_model(&self, name: &ModelName) -> Result<Value, Refusal> {
        let model = self.store.model(name).await?;
        let latest = self.store.latest_versions(std::slice::from_ref(name)).await?;
        Ok(answer::model(model, latest))
    }
}

fn model_name(fields: &Fields) -> Result<ModelName, Refusal> {
    Ok(ModelName::parse("name", &fields.required("name")?)?)
}

fn version_id(fields: &Fields) -> Result<VersionId, Refusal> {
    let model = model_name(fields)?;
    let number = match fields.integer("version") {
        Ok(Some(number)) => number,
        Ok(None) => return Err(missing("version")),
        Err(_) => {
            let given = fields.text_or_empty("version").unwrap_or_default();
            let told = format!("Parameter 'version' must be an integer, got '{given}'.");
            return Err(Refusal::invalid(told));
        }
    };
    Ok(VersionId { model, number })
}

async fn find(mlflow: &Mlflow, id: VersionId) -> Result<Version, Refusal> {
    Ok(mlflow.store.version(&Reference::Number(id)).await?)
}

fn description(fields: &Fields) -> Result<String, Refusal> {
    let text = fields.text_or_empty("description")?;
    limits::description(&text)?;
    Ok(text)
}

fn checked_tags(fields: &Fields) -> Result<BTreeMap<String, String>, Refusal> {
    let tags = fields.pairs("tags")?;
    limits::pairs("tags", tags.len())?;
    for (key, value) in &tags {
        limits::registry_tag(key, value)?;
    }
    Ok(tags)
}

async fn create(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let draft =
        ModelDraft { name: model_name(&fields)?, description: description(&fields)?, tags: checked_tags(&fields)? };
    let model = mlflow.store.create_model(&Call::now(), &draft).await?;
    mlflow.changed(answer::one("registered_model", answer::model(model, Vec::new())))
}

async fn by_name(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let name = model_name(&fields)?;
    Ok(answer::one("registered_model", mlflow.one_model(&name).await?))
}

/// What is searched for, in the registry. Prompts are left out unless the filter asks for them.
fn registry_search(fields: &Fields, subject: Subject, default: u32, max: u32) -> Result<Search, Refusal> {
    Ok(Search {
        conditions: fields.conditions(subject)?,
        orders: fields.orders(subject)?,
        view: View::All,
        experiments: Vec::new(),
        datasets: Vec::new(),
        offset: fields.offset()?,
        limit: fields.limit(default, max)?,
    })
}

async fn search(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let search = registry_search(&fields, Subject::RegisteredModels, 100, 1000)?;
    let page = mlflow.store.search_models(&search).await?;
    let names: Vec<ModelName> = page.items.iter().map(|model| model.name.clone()).collect();
    let mut latest: BTreeMap<ModelName, Vec<Version>> = BTreeMap::new();
    for version in mlflow.store.latest_versions(&names).await? {
        latest.entry(version.id.model.clone()).or_default().push(version);
    }
    let models = page.items.into_iter().map(|model| {
        let own = latest.remove(&model.name).unwrap_or_default();
        answer::model(model, own)
    });
    Ok(answer::page("registered_models", models.collect(), page.next))
}

async fn rename(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let from = model_name(&fields)?;
    let to = ModelName::parse("new_name", &fields.required("new_name")?)?;
    mlflow.store.rename_model(&Call::now(), &from, &to).await?;
    let model = mlflow.one_model(&to).await?;
    mlflow.changed(answer::one("registered_model", model))
}

async fn update(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let name = model_name(&fields)?;
    let update = Update { model: name.clone(), version: None, description: Some(description(&fields)?), tags: None };
    mlflow.store.update(&Call::now(), &update).await?;
    let model = mlflow.one_model(&name).await?;
    mlflow.changed(answer::one("registered_model", model))
}

async fn delete(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    mlflow.store.delete_model(&Call::now(), &model_name(&fields)?, true).await?;
    mlflow.changed(answer::nothing())
}

fn stage(text: &str) -> Result<Stage, Refusal> {
    match text.to_ascii_lowercase().as_str() {
        "none" => Ok(Stage::None),
        "staging" => Ok(Stage::Staging),
        "production" => Ok(Stage::Production),
        "archived" => Ok(Stage::Archived),
        _ => Err(Refusal::invalid(format!(
            "Invalid Model Version stage: {text}. Value must be one of None, Staging, Production, Archived."
        ))),
    }
}

async fn latest_versions(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let name = model_name(&fields)?;
    let stages = fields.texts("stages")?.iter().map(|text| stage(text)).collect::<Result<Vec<_>, _>>()?;
    mlflow.store.model(&name).await?;
    let versions = mlflow.store.latest_versions(&[name]).await?;
    let wanted = versions.into_iter().filter(|version| stages.is_empty() || stages.contains(&version.stage));
    Ok(answer::one("model_versions", wanted.map(answer::version).collect()))
}

async fn change_tag(mlflow: &Mlflow, fields: &Fields, version: Option<i64>, value: Option<String>) -> Answer {
    let (model, key) = (model_name(fields)?, fields.required("key")?);
    limits::registry_tag(&key, value.as_deref().unwrap_or_default())?;
    let is_removal = value.is_none();
    let change = TagChange { model, version, key, value };
    match mlflow.store.change_tag(&Call::now(), &change).await {
        Ok(()) => {}
        // MLflow removes what is not there without a word.
        Err(crate::error::Error::NotFound(crate::error::Entity::Tag { .. })) if is_removal => {}
        Err(error) => return Err(error.into()),
    }
    mlflow.changed(answer::nothing())
}

async fn set_tag(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let value = fields.text_or_empty("value")?;
    change_tag(&mlflow, &fields, None, Some(value)).await
}

async fn delete_tag(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    change_tag(&mlflow, &fields, None, None).await
}

async fn set_version_tag(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let (id, value) = (version_id(&fields)?, fields.text_or_empty("value")?);
    change_tag(&mlflow, &fields, Some(id.number), Some(value)).await
}

async fn delete_version_tag(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let id = version_id(&fields)?;
    change_tag(&mlflow, &fields, Some(id.number), None).await
}

fn alias(fields: &Fields) -> Result<AliasName, Refusal> {
    let text = fields.required("alias")?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !text.chars().all(is_plain) {
        return Err(Refusal::invalid(format!(
            "Invalid alias name: '{text}'. Names may only contain alphanumerics, underscores (_), and dashes (-)."
        )));
    }
    if text.eq_ignore_ascii_case("latest") {
        return Err(Refusal::invalid("'latest' alias name (case insensitive) is reserved."));
    }
    if text.strip_prefix('v').is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err(Refusal::invalid(format!("Version alias name '{text}' is reserved.")));
    }
    Ok(AliasName::parse("alias", &text)?)
}

async fn move_alias(mlflow: &Mlflow, model: ModelName, alias: AliasName, to: Option<i64>) -> Answer {
    let change = AliasMove { model, alias, to, expected: None };
    match mlflow.store.move_alias(&Call::now(), &change).await {
        Ok(_) => {}
        Err(crate::error::Error::NotFound(crate::error::Entity::Alias { .. })) if to.is_none() => {}
        Err(error) => return Err(error.into()),
    }
    mlflow.changed(answer::nothing())
}

async fn set_alias(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let VersionId { model, number } = version_id(&fields)?;
    move_alias(&mlflow, model, alias(&fields)?, Some(number)).await
}

async fn delete_alias(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    move_alias(&mlflow, model_name(&fields)?, alias(&fields)?, None).await
}

async fn by_alias(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let model = model_name(&fields)?;
    if fields.required("alias")?.eq_ignore_ascii_case("latest") {
        mlflow.store.model(&model).await?;
        let versions = mlflow.store.latest_versions(std::slice::from_ref(&model)).await?;
        let newest = versions.into_iter().max_by_key(|version| version.id.number);
        let none =
            || Refusal::from(crate::error::Error::Rejected(format!("Latest version not found for model {model}.")));
        return Ok(answer::one("model_version", answer::version(newest.ok_or_else(none)?)));
    }
    let found = mlflow.store.version(&Reference::Alias { model, alias: alias(&fields)? }).await?;
    Ok(answer::one("model_version", answer::version(found)))
}

async fn create_version(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let (model, source, tags) = (model_name(&fields)?, fields.required("source")?, checked_tags(&fields)?);
    let (logged_model, run) = (fields.text_or_empty("model_id")?, fields.text_or_empty("run_id")?);
    let origin = Origin { source, run, run_link: fields.text_or_empty("run_link")?, logged_model };
    let wanted = Registration { model, description: description(&fields)?, tags, origin };
    let version = registration::register(&*mlflow.store, &Call::now(), wanted).await?;
    mlflow.changed(answer::one("model_version", answer::version(version)))
}

async fn version(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    Ok(answer::one("model_version", answer::version(find(&mlflow, version_id(&fields)?).await?)))
}

async fn search_versions(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let page = page_of_versions(&mlflow, &fields).await?;
    Ok(answer::written("model_versions", page.items.iter().map(VersionBody::of).collect(), page.next))
}

async fn page_of_versions(mlflow: &Mlflow, fields: &Fields) -> Result<Page<Version>, Refusal> {
    let search = registry_search(fields, Subject::ModelVersions, 10_000, 200_000)?;
    Ok(mlflow.store.search_versions(&search).await?)
}

/// What [`search_versions`] answers.
pub(super) async fn versions(mlflow: &Mlflow, fields: &Fields) -> Result<Value, Refusal> {
    let page = page_of_versions(mlflow, fields).await?;
    Ok(answer::paged("model_versions", page.items.into_iter().map(answer::version).collect(), page.next))
}

async fn update_version(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let id = version_id(&fields)?;
    let description = Some(description(&fields)?);
    let update = Update { model: id.model.clone(), version: Some(id.number), description, tags: None };
    mlflow.store.update(&Call::now(), &update).await?;
    let version = find(&mlflow, id).await?;
    mlflow.changed(answer::one("model_version", answer::version(version)))
}

async fn move_to_stage(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let (id, text) = (version_id(&fields)?, fields.required("stage")?);
    let (stage, archive) = (stage(&text)?, fields.truth("archive_existing_versions")?.unwrap_or(false));
    if archive {
        limits::archiving(&text, stage)?;
    }
    let version = mlflow.store.move_to_stage(&Call::now(), &id, stage, archive).await?;
    mlflow.changed(answer::one("model_version", answer::version(version)))
}

async fn delete_version(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let id = version_id(&fields)?;
    mlflow.store.must_be_free(&id).await?;
    // Unlike gRPC's callers, MLflow's expect the aliases to go with their version.
    mlflow.store.delete_version(&Call::now(), &id, true).await?;
    mlflow.changed(answer::nothing())
}

/// Files this registry keeps are read from the version itself, which never changes; others from where they were said to be.
async fn download_uri(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let version = find(&mlflow, version_id(&fields)?).await?;
    let uri = match version.artifacts.is_empty() {
        false => format!("{PROXY}/{VERSIONS}/{}/{}", version.id.model, version.id.number),
        true => mlflow.resolved(&version.origin.source).await?,
    };
    Ok(answer::one("artifact_uri", uri.into()))
}

impl Mlflow {
    /// Where the files of a source are: `models:/…` names something that has a source of its own.
    async fn resolved(&self, source: &str) -> Result<String, Refusal> {
        let mut source = source.to_owned();
        // A copy of a copy of a copy. An alias may have been moved since, to where it began: that has no end.
        for _ in 0..MAX_COPIES {
            let Some(rest) = source.strip_prefix("models:/") else { break };
            source = match Reference::parse("source", rest) {
                Ok(reference) => self.store.version(&reference).await?.origin.source,
                Err(_) => return Ok(self.store.logged_model(rest).await?.artifact_location),
            };
        }
        Ok(source)
    }
}
