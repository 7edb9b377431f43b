//! Registered models and prompts, each with its versions and aliases.

use std::collections::BTreeMap;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::files::{Place, below};
use super::pages::Pages;
use super::wire::{
    DownloadUri, LoggedModelAnswer, ModelAnswer, ModelPage, RunAnswer, VersionPage, WireAlias, WireRegisteredModel,
    WireVersion, pairs,
};
use super::{Failure, Found, Import, compare};
use crate::error::Error;
use crate::model::{Artifact, Micros, Model, Origin, Task, Version};
use crate::names::{AliasName, ArtifactPath, ModelName, Reference, VersionId};
use crate::store::Call;
use crate::tracking::PROXY;

/// The condition by which prompts are found; without it they are left out of every search.
const IS_PROMPT: &str = "tags.`mlflow.prompt.is_prompt` = 'true'";
/// Tags of a version that is a prompt: its text is one of them, and it has no files.
const PROMPT_TAGS: [&str; 2] = ["mlflow.prompt.is_prompt", "mlflow.prompt.text"];

/// Where the files of a version are: at the source, and here if what they belong to has been copied.
struct Home {
    there: Place,
    here: Option<String>,
}

fn micros(millis: i64) -> Micros {
    Micros(millis.saturating_mul(1000))
}

/// A text as the language of filters writes it.
fn quoted(text: &str) -> Found<String> {
    match (text.contains('\''), text.contains('"')) {
        (false, _) => Ok(format!("'{text}'")),
        (true, false) => Ok(format!("\"{text}\"")),
        (true, true) => Err(Failure::item("its name holds both kinds of quotes, so its versions cannot be asked for")),
    }
}

impl Import<'_> {
    /// Who changes what is imported, for the audit log.
    fn call(&self) -> Call {
        Call { caller: "import-mlflow".to_owned(), ..Call::now() }
    }

    /// Copies the registered models that were asked for.
    pub(super) async fn models(&self) -> Found<()> {
        let (named, experiments) = (&self.config.models, &self.config.experiments);
        for name in named {
            let copying = async {
                let query = [("name", name.as_str())];
                let found: ModelAnswer = self.source.get(&["registered-models", "get"], &query).await?;
                self.registered_model(found.registered_model).await
            };
            self.settle("registered model", name, copying).await.map_err(Failure::Fatal)?;
        }
        if !named.is_empty() || !experiments.is_empty() {
            return Ok(());
        }
        for filter in [None, Some(IS_PROMPT)] {
            let mut pages = Pages::of("registered models");
            loop {
                let mut query = vec![("max_results", "100"), ("order_by", "name ASC")];
                query.extend(filter.map(|filter| ("filter", filter)));
                query.extend((!pages.token().is_empty()).then_some(("page_token", pages.token())));
                let page: ModelPage = self.source.get(&["registered-models", "search"], &query).await?;
                for model in page.registered_models {
                    let name = model.name.clone();
                    self.settle("registered model", &name, self.registered_model(model))
                        .await
                        .map_err(Failure::Fatal)?;
                }
                if !pages.go_on(page.next_page_token)? {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn registered_model(&self, wire: WireRegisteredModel) -> Found<()> {
        let name = ModelName::parse("name", &wire.name)?;
        let model = Model {
            name: name.clone(),
            description: wire.description,
            tags: pairs(wire.tags),
            aliases: BTreeMap::new(),
            latest_version: 0,
            create_time: micros(wire.creation_timestamp),
            update_time: micros(wire.last_updated_timestamp),
            revision: 0,
        };
        match self.store.model(&name).await {
            Ok(here) if here.create_time == model.create_time => {
                self.here_already(|counts| counts.registered_models += 1);
                if let Some(why) = compare::models(&here, &model).told() {
                    self.leave_out("properties of registered model", name.as_str(), why);
                }
            }
            Ok(_) => {
                return Err(Failure::item(
                    "a model of this name is here already, made at another time; rename one of the two and start again. \
                     Its versions are left out with it",
                ));
            }
            Err(Error::NotFound(_)) => {
                if !self.config.dry_run && !self.store.import_model(&self.call(), &model).await? {
                    return Err(Failure::item("a model of this name has just been made here"));
                }
                self.copied(|counts| counts.registered_models += 1);
            }
            Err(error) => return Err(error.into()),
        }
        self.versions(&name, None).await?;
        if PROMPT_TAGS.iter().any(|tag| model.tags.contains_key(*tag)) {
            self.versions(&name, Some(IS_PROMPT)).await?;
        }
        for alias in wire.aliases {
            let told = format!("{name}@{}", alias.alias);
            self.settle("alias", &told, self.alias(&name, alias)).await.map_err(Failure::Fatal)?;
        }
        self.progress.done(&format!("registered model `{name}`"));
        Ok(())
    }

    /// Copies the versions of a model, from the first to the newest.
    async fn versions(&self, name: &ModelName, also: Option<&str>) -> Found<()> {
        let filter = format!("name = {}", quoted(name.as_str())?);
        let filter = also.map_or_else(|| filter.clone(), |also| format!("{filter} AND {also}"));
        let mut pages = Pages::of("versions");
        loop {
            let mut query =
                vec![("filter", filter.as_str()), ("max_results", "500"), ("order_by", "version_number ASC")];
            query.extend((!pages.token().is_empty()).then_some(("page_token", pages.token())));
            let page: VersionPage = self.source.get(&["model-versions", "search"], &query).await?;
            for version in page.model_versions {
                let told = format!("{name}/{}", version.version);
                self.settle("version", &told, self.version(name, version)).await.map_err(Failure::Fatal)?;
            }
            if !pages.go_on(page.next_page_token)? {
                return Ok(());
            }
        }
    }

    async fn version(&self, name: &ModelName, wire: WireVersion) -> Found<()> {
        let number = wire.version.parse::<i64>().ok().filter(|number| *number >= 1);
        let number = number.ok_or_else(|| Failure::item("its number is none"))?;
        if wire.status != "READY" {
            return Err(Failure::item(format!("it is not READY but {}", wire.status)));
        }
        let id = VersionId { model: name.clone(), number };
        let mut version = Version {
            id: id.clone(),
            description: wire.description,
            task: Task::Custom,
            signature: None,
            parameters: BTreeMap::new(),
            tags: pairs(wire.tags),
            artifacts: Vec::new(),
            digest: None,
            aliases: Vec::new(),
            origin: Origin {
                source: wire.source,
                run: wire.run_id,
                run_link: wire.run_link,
                logged_model: wire.model_id,
            },
            author: String::new(),
            stage: wire.current_stage,
            create_time: micros(wire.creation_timestamp),
            update_time: micros(wire.last_updated_timestamp),
            revision: 0,
        };
        let is_prompt = PROMPT_TAGS.iter().any(|tag| version.tags.contains_key(*tag));
        match self.store.version(&Reference::Number(id.clone())).await {
            Ok(here) => {
                if let Some(why) = compare::versions(&here, &version).told() {
                    return Err(Failure::item(why));
                }
                self.here_already(|counts| counts.versions += 1);
                let is_elsewhere = here.artifacts.is_empty() && !here.origin.source.starts_with(PROXY);
                if is_elsewhere && !is_prompt {
                    let told = format!("they stay at {}", here.origin.source);
                    self.leave_out("files of version", id.to_string(), told);
                }
                self.settled.lock().insert(id);
                return Ok(());
            }
            Err(Error::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
        if !is_prompt {
            self.take_files(&mut version).await?;
        }
        if self.config.dry_run || self.store.import_version(&self.call(), &version).await? {
            self.copied(|counts| counts.versions += 1);
        } else {
            self.here_already(|counts| counts.versions += 1);
        }
        self.settled.lock().insert(id);
        Ok(())
    }

    /// Gives a version all of its files, or says that the server cannot reach them; and names where they are here.
    async fn take_files(&self, version: &mut Version) -> Found<()> {
        let id = version.id.clone();
        let number = id.number.to_string();
        let query = [("name", id.model.as_str()), ("version", number.as_str())];
        let uri: DownloadUri = self.source.get(&["model-versions", "get-download-uri"], &query).await?;
        let uri = uri.artifact_uri;
        let elsewhere =
            |why: String| self.leave_out("files of version", id.to_string(), format!("they stay at {uri}: {why}"));
        let Some(Home { there, here }) = self.home(&version.origin, &uri).await? else {
            elsewhere("the server does not pass them on".to_owned());
            return Ok(());
        };
        let listed = match self.list(&there).await {
            Ok(listed) => listed,
            Err(Failure::Item { why, .. }) => {
                elsewhere(why);
                return Ok(());
            }
            Err(fatal) => return Err(fatal),
        };
        let kept = self.kept(&version.origin, here.as_deref()).await?;
        let (there, kept) = (&there, &kept);
        let taking = stream::iter(listed).map(|file| async move {
            let path = ArtifactPath::parse("path", &file.path)?;
            match kept.get(&file.path) {
                // Came with the run or the logged model it belongs to.
                Some(kept) if file.size.is_none_or(|size| size == kept.size) => {
                    Ok(Some(Artifact { path, ..kept.clone() }))
                }
                _ if self.config.dry_run => Ok(None),
                _ => {
                    let taken = self.fetch(there, &file, path).await?;
                    self.count_file(taken.size);
                    Ok::<_, Failure>(Some(taken))
                }
            }
        });
        let taken: Vec<Option<Artifact>> = taking.buffer_unordered(self.at_once()).try_collect().await?;
        version.artifacts = taken.into_iter().flatten().collect();
        let source = &mut version.origin.source;
        if !source.starts_with("models:/") && !source.starts_with("runs:/") {
            match here {
                Some(here) => *source = here,
                None if !version.artifacts.is_empty() => *source = format!("{PROXY}/versions/{id}"),
                None => {}
            }
        }
        Ok(())
    }

    /// The files that came with what a version was made from, by their paths from its own directory.
    async fn kept(&self, origin: &Origin, here: Option<&str>) -> Found<BTreeMap<String, Artifact>> {
        if let Some(dir) = here.and_then(|uri| uri.strip_prefix(PROXY)) {
            let dir = dir.trim_matches('/');
            let files = self.store.files_below(dir).await?.into_iter();
            return Ok(files.filter_map(|file| Some((below(file.path.as_str(), dir)?.to_owned(), file))).collect());
        }
        // A copy of another version.
        let copied = match Reference::parse("source", &origin.source) {
            Ok(of) if origin.source.starts_with("models:/") => self.store.version(&of).await.ok(),
            _ => None,
        };
        let files = copied.map(|version| version.artifacts).unwrap_or_default();
        Ok(files.into_iter().map(|file| (file.path.to_string(), file)).collect())
    }

    /// Where the files at `uri` are: those of a run or of a logged model are known here too, where these were copied.
    async fn home(&self, origin: &Origin, uri: &str) -> Found<Option<Home>> {
        let proxied = |there: Place| Place::proxied(uri, &self.config.from).unwrap_or(there);
        let joined = |root: &str, dir: &str| match dir {
            "" => root.trim_end_matches('/').to_owned(),
            dir => format!("{}/{dir}", root.trim_end_matches('/')),
        };
        let ours = |uri: &String| uri.starts_with(PROXY);
        if !origin.run.is_empty()
            && let Some(answer) =
                known(self.source.get::<RunAnswer>(&["runs", "get"], &[("run_id", &origin.run)]).await)?
            && let Some(dir) = below(uri, &answer.run.into_run(0).artifact_uri)
        {
            let here = self.store.run(&origin.run).await.ok().map(|run| joined(&run.artifact_uri, dir));
            let there = proxied(Place::Run { id: origin.run.clone(), dir: dir.to_owned() });
            return Ok(Some(Home { there, here: here.filter(ours) }));
        }
        let named = origin.source.strip_prefix("models:/").filter(|rest| !rest.contains(['/', '@']));
        let logged = named.unwrap_or(&origin.logged_model);
        if !logged.is_empty()
            && let Some(answer) = known(self.source.get::<LoggedModelAnswer>(&["logged-models", logged], &[]).await)?
            && let Some(dir) = below(uri, &answer.model.into_logged_model(0).artifact_location)
        {
            let here = self.store.logged_model(logged).await.ok().map(|model| joined(&model.artifact_location, dir));
            let there = proxied(Place::LoggedModel { id: logged.to_owned(), dir: dir.to_owned() });
            return Ok(Some(Home { there, here: here.filter(ours) }));
        }
        Ok(Place::proxied(uri, &self.config.from).map(|there| Home { there, here: None }))
    }

    async fn alias(&self, name: &ModelName, wire: WireAlias) -> Found<()> {
        let alias = AliasName::parse("alias", &wire.alias)?;
        let number = wire.version.parse().map_err(|_| Failure::item("it points at no number"))?;
        match self.store.model(name).await {
            Ok(model) => match model.aliases.get(alias.as_str()) {
                Some(here) if *here == number => {
                    self.here_already(|counts| counts.aliases += 1);
                    return Ok(());
                }
                Some(here) => {
                    let told = format!("it points at version {here} here, at {number} there; it stays as it is here");
                    return Err(Failure::item(told));
                }
                None => {}
            },
            Err(Error::NotFound(_)) if self.config.dry_run => {}
            Err(error) => return Err(error.into()),
        }
        let to = VersionId { model: name.clone(), number };
        if !self.settled.lock().contains(&to) {
            return Err(Failure::item(format!("version {number}, which it points at, was left out")));
        }
        if self.config.dry_run || self.store.import_alias(&self.call(), &alias, &to).await? {
            self.copied(|counts| counts.aliases += 1);
            return Ok(());
        }
        Err(Failure::item("it has just been set here"))
    }
}

/// What a server knows; of what it has forgotten, nothing.
fn known<T>(found: Found<T>) -> Found<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Failure::Item { .. }) => Ok(None),
        Err(fatal) => Err(fatal),
    }
}
