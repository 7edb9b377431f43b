//! Experiments, each with its runs and logged models.

use serde_json::json;

use super::pages::Pages;
use super::wire::{ExperimentAnswer, ExperimentPage, WireExperiment};
use super::{Failure, Found, Import, compare};
use crate::error::Error;
use crate::tracking::{DEFAULT_EXPERIMENT, Experiment, ExperimentRef, Search, View};

/// The name of the experiment that every store begins with.
const DEFAULT_NAME: &str = "Default";

impl Import<'_> {
    /// Copies the experiments that were asked for.
    pub(super) async fn experiments(&self) -> Found<()> {
        let (named, models) = (&self.config.experiments, &self.config.models);
        for name in named {
            let copying = async {
                let query = [("experiment_name", name.as_str())];
                let found: ExperimentAnswer = self.source.get(&["experiments", "get-by-name"], &query).await?;
                self.experiment(found.experiment).await
            };
            self.settle("experiment", name, copying).await.map_err(Failure::Fatal)?;
        }
        if !named.is_empty() || !models.is_empty() {
            return Ok(());
        }
        let mut pages = Pages::of("experiments");
        loop {
            let query = json!({
                "max_results": 1000,
                "view_type": self.view(),
                "order_by": ["experiment_id ASC"],
                "page_token": pages.token(),
            });
            let page: ExperimentPage = self.source.post(&["experiments", "search"], &query).await?;
            for experiment in page.experiments {
                let name = experiment.name.clone();
                self.settle("experiment", &name, self.experiment(experiment)).await.map_err(Failure::Fatal)?;
            }
            if !pages.go_on(page.next_page_token)? {
                return Ok(());
            }
        }
    }

    /// Which of the living and the deleted are asked for.
    pub(super) fn view(&self) -> &'static str {
        if self.config.include_deleted { "ALL" } else { "ACTIVE_ONLY" }
    }

    async fn experiment(&self, wire: WireExperiment) -> Found<()> {
        let there = wire.experiment_id.clone();
        let experiment = wire.into_experiment();
        if experiment.is_deleted && !self.config.include_deleted {
            return Err(Failure::item("it is deleted; --include-deleted copies it"));
        }
        let here = self.place(&experiment).await?;
        if here >= 0 && there != here.to_string() {
            self.report.lock().experiment_ids.insert(there.clone(), here);
        }
        self.runs(&there, here).await?;
        self.logged_models(&there, here).await?;
        self.progress.done(&format!("experiment `{}`", experiment.name));
        Ok(())
    }

    /// Finds an experiment's place here or makes it one; answers its number, which is what it would be in a dry run.
    async fn place(&self, experiment: &Experiment) -> Found<i64> {
        let name = &experiment.name;
        match self.store.experiment(&ExperimentRef::Name(name.clone())).await {
            Ok(here) if here.create_time == experiment.create_time => return Ok(self.found(&here, experiment)),
            Ok(here) if here.id == DEFAULT_EXPERIMENT && name == DEFAULT_NAME => {
                if !self.is_untouched(&here).await? {
                    return Ok(self.found(&here, experiment));
                }
            }
            Ok(here) => {
                return Err(Failure::item(format!(
                    "an experiment of this name is here already (number {}), made at another time; rename one of the two \
                     and start again. Its runs and logged models are left out with it",
                    here.id
                )));
            }
            Err(Error::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let wanted = (experiment.id >= 0).then_some(experiment.id);
        let id = if self.config.dry_run {
            experiment.id
        } else {
            let taken = || Failure::item("an experiment of this name has just been made here");
            self.store.import_experiment(wanted, experiment).await?.ok_or_else(taken)?
        };
        self.copied(|counts| counts.experiments += 1);
        Ok(id)
    }

    /// An experiment that is here; where it was changed on either side since, that is said.
    fn found(&self, here: &Experiment, there: &Experiment) -> i64 {
        self.here_already(|counts| counts.experiments += 1);
        if let Some(why) = compare::experiments(here, there).told() {
            self.leave_out("properties of experiment", &there.name, why);
        }
        here.id
    }

    /// Whether nothing has been put into the experiment that every store begins with.
    async fn is_untouched(&self, default: &Experiment) -> Found<bool> {
        let search = Search {
            conditions: Vec::new(),
            orders: Vec::new(),
            view: View::All,
            experiments: vec![DEFAULT_EXPERIMENT],
            datasets: Vec::new(),
            offset: 0,
            limit: 1,
        };
        let runs = self.store.runs(&search).await?.items.len();
        let models = self.store.logged_models(&search).await?.items.len();
        Ok(runs + models == 0 && default.tags.is_empty() && !default.is_deleted)
    }
}
