//! Puts the demo models into the registry.

use std::{collections::BTreeMap, fs::File, path::Path};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use model_registry::publish::{Publication, publish};
use verdict_api::registry::{Signature, Task, Version};
use verdict_chassis::client::Channel;

use crate::Settings;

/// The name every version is served by.
pub(crate) const CHAMPION: &str = "champion";
/// The decision model.
pub(crate) const CREDIT_RISK: &str = "credit-risk";

/// A publication of a downloaded model, which becomes the champion of its name.
pub(crate) fn downloaded(settings: &Settings, model: &str, task: Task, folder: &str) -> Result<Publication> {
    let dir = settings.models_dir().join(folder);
    ensure!(dir.is_dir(), "{} is missing: run `make models`", dir.display());
    Ok(Publication {
        model: model.to_owned(),
        description: folder.to_owned(),
        task,
        signature: None,
        parameters: BTreeMap::new(),
        tags: BTreeMap::from([("source".to_owned(), folder.to_owned())]),
        dir,
        alias: Some(CHAMPION.to_owned()),
        request_id: None,
    })
}

/// A publication of the carried credit-risk model, first or second version.
pub(crate) fn credit_risk(settings: &Settings, version: u32, alias: Option<&str>) -> Result<Publication> {
    let folder = settings.demo_data.join(CREDIT_RISK);
    Ok(Publication {
        model: CREDIT_RISK.to_owned(),
        description: "Probability that a credit turns bad (German credit data)".to_owned(),
        task: Task::TabularClassification,
        signature: Some(signature(&folder.join("signature.json"))?),
        parameters: BTreeMap::new(),
        tags: BTreeMap::from([("data".to_owned(), "german-credit".to_owned())]),
        dir: folder.join(version.to_string()),
        alias: alias.map(str::to_owned),
        request_id: None,
    })
}

fn signature(file: &Path) -> Result<Signature> {
    let open = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    model_registry::publish::signature_from_json(open).with_context(|| format!("in {}", file.display()))
}

/// Publishes with a progress bar.
pub(crate) async fn show(registry: &Channel, publication: Publication) -> Result<Version> {
    let name = publication.model.clone();
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("   {msg:40!} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let version = publish(registry.clone(), publication, |path, sent, of| {
        bar.set_message(format!("{name}/{path}"));
        bar.set_length(of);
        bar.set_position(sent);
    })
    .await
    .map_err(|status| anyhow::anyhow!("{}: {}", status.code(), status.message()))
    .with_context(|| format!("cannot publish `{name}`"))?;
    bar.finish_and_clear();
    Ok(version)
}
