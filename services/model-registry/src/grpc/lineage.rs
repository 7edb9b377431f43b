//! `LineageService`: what deployments serve, and how versions, runs and deployments hang together.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tonic::{Request, Response};
use verdict_api::registry as api;
use verdict_api::registry::get_lineage_request::Of;
use verdict_api::registry::lineage_service_server::LineageService;

use super::Answer;
use crate::convert;
use crate::error::{Error, Result};
use crate::lineage::{Deployment, Filter, Report, Serving};
use crate::model::{Micros, Version};
use crate::names::{ModelName, VersionId, version_number};
use crate::store::Everything;
use crate::store::rows::to_word;
use crate::tracking::{Millis, Run};

const DEFAULT_LEASE: i32 = 90;
/// Deployments of a version that its lineage shows.
const SHOWN: u32 = 100;
/// MLflow's name for what a dataset was used for.
const CONTEXT: &str = "mlflow.data.context";

/// What the calls work on.
pub(crate) struct Trail {
    pub(crate) store: Arc<dyn Everything>,
}

#[async_trait]
impl LineageService for Trail {
    async fn report_deployment(
        &self,
        request: Request<api::ReportDeploymentRequest>,
    ) -> Answer<api::ReportDeploymentResponse> {
        let api::ReportDeploymentRequest { deployment, serving, lease_seconds } = request.into_inner();
        let lease = if lease_seconds == 0 { DEFAULT_LEASE } else { lease_seconds };
        if !(10..=3600).contains(&lease) {
            return Err(Error::invalid("INVALID_LEASE", "lease_seconds", "must be 10 to 3600, or 0").into());
        }
        let serving = serving.into_iter().map(|serving| {
            let api::Serving { reference, model, version, digest } = serving;
            let model = ModelName::parse("serving.model", &model)?;
            let version = VersionId { model, number: version_number("serving.version", version)? };
            Ok(Serving { reference, version, digest })
        });
        let now = Micros::now();
        let report = Report {
            deployment,
            serving: serving.collect::<Result<_>>()?,
            expires: Micros(now.0 + i64::from(lease) * 1_000_000),
        };
        report.check()?;
        self.store.report_deployment(now, &report).await?;
        Ok(Response::new(api::ReportDeploymentResponse {}))
    }

    async fn list_deployments(
        &self,
        request: Request<api::ListDeploymentsRequest>,
    ) -> Answer<api::ListDeploymentsResponse> {
        let api::ListDeploymentsRequest { model, include_ended, page_size, page_token } = request.into_inner();
        let size = convert::page_size(page_size)?;
        let model = Some(model).filter(|model| !model.is_empty());
        let model = model.map(|model| ModelName::parse("model", &model)).transpose()?;
        let offset = convert::after(&page_token, |text| text.parse().ok().filter(|offset| *offset > 0))?;
        let offset = offset.unwrap_or(0);
        let mut found = self.store.deployments(&Filter { model, include_ended, offset }, size + 1).await?;
        let has_more = found.len() > size as usize;
        found.truncate(size as usize);
        let next_page_token =
            if has_more { convert::page_token(&(offset + i64::from(size)).to_string()) } else { String::new() };
        let now = Micros::now();
        let deployments = found.into_iter().map(|deployment| shown(deployment, now)).collect();
        Ok(Response::new(api::ListDeploymentsResponse { deployments, next_page_token }))
    }

    async fn get_lineage(&self, request: Request<api::GetLineageRequest>) -> Answer<api::GetLineageResponse> {
        let missing = || Error::invalid("INVALID_LINEAGE", "of", "must name a version or a run");
        let (run, versions) = match request.into_inner().of.ok_or_else(missing)? {
            Of::Version(api::VersionName { model, version }) => {
                let versions = self.store.copies(&VersionId::parse(&model, version)?).await?;
                let run = versions.first().map(|version| version.origin.run.clone()).unwrap_or_default();
                // The run may have been made elsewhere, or be gone for good.
                let run = match self.store.run(&run).await {
                    Ok(run) => Some(run),
                    Err(Error::NotFound(_)) => None,
                    Err(error) => return Err(error.into()),
                };
                (run, versions)
            }
            Of::RunId(run) => (Some(self.store.run(&run).await?), self.store.versions_of_run(&run).await?),
        };
        let ids: Vec<_> = versions.iter().map(|version| version.id.clone()).collect();
        let now = Micros::now();
        let mut deployments: BTreeMap<VersionId, Vec<api::Deployment>> = BTreeMap::new();
        for deployment in self.store.deployments_of(&ids, SHOWN).await? {
            deployments.entry(deployment.serving.version.clone()).or_default().push(shown(deployment, now));
        }
        let version = |version: Version| {
            let deployments = deployments.remove(&version.id).unwrap_or_default();
            let Version { id: VersionId { model, number }, digest, author, create_time, aliases, origin, .. } = version;
            api::LineageVersion {
                model: model.to_string(),
                version: number,
                digest: digest.unwrap_or_default(),
                author,
                create_time: Some(convert::timestamp(create_time)),
                aliases,
                source: origin.source,
                logged_model_id: origin.logged_model,
                deployments,
            }
        };
        let versions = versions.into_iter().map(version).collect();
        let run = run.map(lineage_run).transpose()?;
        Ok(Response::new(api::GetLineageResponse { run, versions }))
    }
}

fn lineage_run(run: Run) -> Result<api::LineageRun> {
    let Run { id, experiment, name, user_id, status, start_time: Millis(start), datasets, .. } = run;
    let dataset = |mut dataset: crate::tracking::DatasetInput| api::LineageDataset {
        context: dataset.tags.remove(CONTEXT).unwrap_or_default(),
        name: dataset.name,
        digest: dataset.digest,
        source_type: dataset.source_type,
        source: dataset.source,
    };
    Ok(api::LineageRun {
        run_id: id,
        name,
        experiment_id: experiment.to_string(),
        user_id,
        status: to_word(&status)?,
        start_time: Some(convert::timestamp(Micros(start.saturating_mul(1000)))),
        datasets: datasets.into_iter().map(dataset).collect(),
    })
}

fn shown(deployment: Deployment, now: Micros) -> api::Deployment {
    let Deployment { deployment, serving, start, seen, expires, end } = deployment;
    let Serving { reference, version: VersionId { model, number }, digest } = serving;
    let state = match end {
        Some(_) => api::DeploymentState::Ended,
        None if expires < now => api::DeploymentState::Lost,
        None => api::DeploymentState::Serving,
    };
    api::Deployment {
        deployment,
        reference,
        model: model.to_string(),
        version: number,
        digest,
        state: state.into(),
        start_time: Some(convert::timestamp(start)),
        seen_time: Some(convert::timestamp(seen)),
        end_time: end.map(convert::timestamp),
    }
}
