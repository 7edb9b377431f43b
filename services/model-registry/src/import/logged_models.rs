//! Logged models with their files. A server does not tell of deleted ones.

use std::mem;

use futures::stream::{self, StreamExt, TryStreamExt};
use serde_json::json;

use super::pages::Pages;
use super::wire::LoggedModelPage;
use super::{Failure, Found, Import, checked_id, compare};
use crate::error::Error;
use crate::tracking::{LoggedModel, PROXY};

impl Import<'_> {
    /// Copies the logged models of an experiment; servers before MLflow 3 have none.
    pub(super) async fn logged_models(&self, there: &str, here: i64) -> Found<()> {
        let mut pages = Pages::of("logged models");
        loop {
            let query = json!({
                "experiment_ids": [there],
                "max_results": 50,
                "order_by": [{"field_name": "creation_timestamp", "ascending": true}],
                "page_token": pages.token(),
            });
            let page: LoggedModelPage = match self.source.post(&["logged-models", "search"], &query).await {
                Err(Failure::Item { status: Some(404 | 405), .. }) => return Ok(()),
                page => page?,
            };
            let models = page.models.into_iter().map(|model| model.into_logged_model(here));
            let copying = stream::iter(models).map(Ok).try_for_each_concurrent(self.at_once(), |model| async move {
                let id = model.id.clone();
                self.settle("logged model", &id, self.logged_model(model)).await
            });
            copying.await.map_err(Failure::Fatal)?;
            if !pages.go_on(page.next_page_token)? {
                return Ok(());
            }
        }
    }

    async fn logged_model(&self, mut model: LoggedModel) -> Found<()> {
        let id = checked_id(&model.id)?.to_owned();
        let here = match self.store.logged_model(&id).await {
            Ok(here) => Some(here),
            Err(Error::NotFound(_)) => None,
            Err(error) => return Err(error.into()),
        };
        if let Some(here) = &here {
            if let Some(why) = compare::logged_models(here, &model).told() {
                return Err(Failure::item(why));
            }
            self.here_already(|counts| counts.logged_models += 1);
            if !here.artifact_location.starts_with(PROXY) {
                self.leave_out("files of logged model", id, format!("they stay at {}", here.artifact_location));
                return Ok(());
            }
        }
        let dir = format!("{}/models/{id}/artifacts", model.experiment);
        let there = mem::replace(&mut model.artifact_location, format!("{PROXY}/{dir}"));
        let place = self.place_of_logged_model(&id, &there);
        match self.copy_files(&format!("logged model {id}"), &place, &dir).await {
            Ok(()) => {}
            Err(Failure::Item { why, .. }) => {
                self.leave_out("files of logged model", &id, format!("they stay at {there}: {why}"));
                model.artifact_location = there;
            }
            Err(fatal) => return Err(fatal),
        }
        if here.is_some() {
            return Ok(());
        }
        if self.config.dry_run || self.store.import_logged_model(&model).await? {
            self.copied(|counts| counts.logged_models += 1);
            return Ok(());
        }
        Err(Failure::item("it was here and was deleted; it is not brought back"))
    }
}
