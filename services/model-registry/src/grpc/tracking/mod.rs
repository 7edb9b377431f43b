//! The gRPC service of experiments, runs and logged models: convert in, one call, convert out.
//!
//! `from_wire` reads requests and checks them by the limits of MLflow's API, `to_wire` writes entities.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::{Request, Response, Status};
use verdict_api::registry as api;
use verdict_api::registry::tracking_service_server::TrackingService;

use crate::feed::Feed;

use crate::names::{ModelName, VersionId};
use crate::search::Subject;
use crate::store::{Call, Everything};
use crate::tracking::{
    ExperimentChange, LoggedModelChange, LoggedModelDraft, Millis, Page, RunChange, RunDraft, Search, View, limits,
};

mod from_wire;
mod to_wire;

use from_wire::{given, pairs, required, text};

type Answer<T> = Result<Response<T>, Status>;

/// What the calls work on.
pub(crate) struct Tracking {
    pub(crate) store: Arc<dyn Everything>,
    pub(crate) feed: Arc<Feed>,
    /// Below which experiments keep their files unless they say otherwise.
    pub(crate) artifact_root: String,
}

fn answer<T>(answer: T) -> Answer<T> {
    Ok(Response::new(answer))
}

impl Tracking {
    async fn change_experiment(&self, id: Option<i64>, change: ExperimentChange) -> Result<(), Status> {
        Ok(self.store.change_experiment(Millis::now(), given("experiment_id", id)?, &change).await?)
    }

    async fn change_run(&self, id: String, change: RunChange) -> Result<api::Run, Status> {
        Ok(self.store.change_run(&required("run_id", id)?, &change).await?.into())
    }

    async fn change_logged_model(&self, id: String, change: LoggedModelChange) -> Result<api::LoggedModel, Status> {
        Ok(self.store.change_logged_model(Millis::now(), &required("model_id", id)?, &change).await?.into())
    }
}

#[async_trait]
impl TrackingService for Tracking {
    async fn create_experiment(
        &self,
        request: Request<api::CreateExperimentRequest>,
    ) -> Answer<api::CreateExperimentResponse> {
        let draft = from_wire::experiment_draft(request.into_inner(), &self.artifact_root)?;
        let experiment_id = self.store.create_experiment(Millis::now(), &draft).await?;
        answer(api::CreateExperimentResponse { experiment_id })
    }

    async fn get_experiment(&self, request: Request<api::GetExperimentRequest>) -> Answer<api::GetExperimentResponse> {
        let experiment = self.store.experiment(&from_wire::experiment_ref(request.into_inner())?).await?;
        answer(api::GetExperimentResponse { experiment: Some(experiment.into()) })
    }

    async fn search_experiments(
        &self,
        request: Request<api::SearchExperimentsRequest>,
    ) -> Answer<api::SearchExperimentsResponse> {
        let view = from_wire::view(request.get_ref().view)?;
        let api::SearchExperimentsRequest { filter, order_by, view: _, page_size, page_token } = request.into_inner();
        let search = from_wire::search(Subject::Experiments, filter, order_by, page_size, page_token)?;
        let page = self.store.experiments(&Search { view, ..search }).await?;
        let (experiments, next_page_token) = to_wire::page(page);
        answer(api::SearchExperimentsResponse { experiments, next_page_token })
    }

    async fn update_experiment(
        &self,
        request: Request<api::UpdateExperimentRequest>,
    ) -> Answer<api::UpdateExperimentResponse> {
        let api::UpdateExperimentRequest { experiment_id, new_name } = request.into_inner();
        let change = ExperimentChange::rename(required("new_name", new_name)?)?;
        self.change_experiment(experiment_id, change).await?;
        answer(api::UpdateExperimentResponse {})
    }

    async fn delete_experiment(
        &self,
        request: Request<api::DeleteExperimentRequest>,
    ) -> Answer<api::DeleteExperimentResponse> {
        let api::DeleteExperimentRequest { experiment_id } = request.into_inner();
        self.change_experiment(experiment_id, ExperimentChange::Delete).await?;
        answer(api::DeleteExperimentResponse {})
    }

    async fn restore_experiment(
        &self,
        request: Request<api::RestoreExperimentRequest>,
    ) -> Answer<api::RestoreExperimentResponse> {
        let api::RestoreExperimentRequest { experiment_id } = request.into_inner();
        self.change_experiment(experiment_id, ExperimentChange::Restore).await?;
        answer(api::RestoreExperimentResponse {})
    }

    async fn set_experiment_tag(
        &self,
        request: Request<api::SetExperimentTagRequest>,
    ) -> Answer<api::SetExperimentTagResponse> {
        let api::SetExperimentTagRequest { experiment_id, key, value } = request.into_inner();
        let change = ExperimentChange::set_tag(required("key", key)?, text("value", value)?)?;
        self.change_experiment(experiment_id, change).await?;
        answer(api::SetExperimentTagResponse {})
    }

    async fn delete_experiment_tag(
        &self,
        request: Request<api::DeleteExperimentTagRequest>,
    ) -> Answer<api::DeleteExperimentTagResponse> {
        let api::DeleteExperimentTagRequest { experiment_id, key } = request.into_inner();
        let change = ExperimentChange::DeleteTag(required("key", key)?);
        self.change_experiment(experiment_id, change).await?;
        answer(api::DeleteExperimentTagResponse {})
    }

    async fn create_run(&self, request: Request<api::CreateRunRequest>) -> Answer<api::CreateRunResponse> {
        let api::CreateRunRequest { experiment_id, name, user_id, start_time_ms, tags } = request.into_inner();
        let (name, user) = (text("name", name)?, text("user_id", user_id)?);
        let draft = RunDraft::new(experiment_id, name, user, start_time_ms.map(Millis), pairs("tags", tags)?)?;
        let run = self.store.create_run(&draft).await?;
        answer(api::CreateRunResponse { run: Some(run.into()) })
    }

    async fn get_run(&self, request: Request<api::GetRunRequest>) -> Answer<api::GetRunResponse> {
        let api::GetRunRequest { run_id } = request.into_inner();
        let run = self.store.run(&required("run_id", run_id)?).await?;
        answer(api::GetRunResponse { run: Some(run.into()) })
    }

    async fn search_runs(&self, request: Request<api::SearchRunsRequest>) -> Answer<api::SearchRunsResponse> {
        let view = from_wire::view(request.get_ref().view)?;
        let api::SearchRunsRequest { experiment_ids: experiments, filter, order_by, view: _, page_size, page_token } =
            request.into_inner();
        let search = from_wire::search(Subject::Runs, filter, order_by, page_size, page_token)?;
        let search = Search { experiments, view, ..search };
        limits::search(&search)?;
        let (runs, next_page_token) = to_wire::page(self.store.runs(&search).await?);
        answer(api::SearchRunsResponse { runs, next_page_token })
    }

    async fn update_run(&self, request: Request<api::UpdateRunRequest>) -> Answer<api::UpdateRunResponse> {
        let status = from_wire::run_status(request.get_ref().status)?;
        let api::UpdateRunRequest { run_id, status: _, end_time_ms, name } = request.into_inner();
        let change = RunChange::update(status, end_time_ms.map(Millis), Some(text("name", name)?))?;
        answer(api::UpdateRunResponse { run: Some(self.change_run(run_id, change).await?) })
    }

    async fn delete_run(&self, request: Request<api::DeleteRunRequest>) -> Answer<api::DeleteRunResponse> {
        let api::DeleteRunRequest { run_id } = request.into_inner();
        self.change_run(run_id, RunChange::Delete).await?;
        answer(api::DeleteRunResponse {})
    }

    async fn restore_run(&self, request: Request<api::RestoreRunRequest>) -> Answer<api::RestoreRunResponse> {
        let api::RestoreRunRequest { run_id } = request.into_inner();
        self.change_run(run_id, RunChange::Restore).await?;
        answer(api::RestoreRunResponse {})
    }

    async fn delete_run_tag(&self, request: Request<api::DeleteRunTagRequest>) -> Answer<api::DeleteRunTagResponse> {
        let api::DeleteRunTagRequest { run_id, key } = request.into_inner();
        self.change_run(run_id, RunChange::DeleteTag(required("key", key)?)).await?;
        answer(api::DeleteRunTagResponse {})
    }

    async fn log_batch(&self, request: Request<api::LogBatchRequest>) -> Answer<api::LogBatchResponse> {
        let (run, batch) = from_wire::batch(request.into_inner())?;
        self.store.log(&run, &batch).await?;
        answer(api::LogBatchResponse {})
    }

    async fn log_inputs(&self, request: Request<api::LogInputsRequest>) -> Answer<api::LogInputsResponse> {
        let (run, uses) = from_wire::inputs(request.into_inner())?;
        self.store.log_uses(&run, &uses).await?;
        answer(api::LogInputsResponse {})
    }

    async fn log_outputs(&self, request: Request<api::LogOutputsRequest>) -> Answer<api::LogOutputsResponse> {
        let (run, uses) = from_wire::outputs(request.into_inner())?;
        self.store.log_uses(&run, &uses).await?;
        answer(api::LogOutputsResponse {})
    }

    async fn list_metric_history(
        &self,
        request: Request<api::ListMetricHistoryRequest>,
    ) -> Answer<api::ListMetricHistoryResponse> {
        let api::ListMetricHistoryRequest { run_id, key, page_size, page_token } = request.into_inner();
        let (run, key) = (required("run_id", run_id)?, required("key", key)?);
        limits::metric_key(&key)?;
        let (offset, limit) = (from_wire::offset(&page_token)?, from_wire::history_size(page_size)?);
        let (metrics, next_page_token) = to_wire::page(self.store.history(&run, &key, offset, limit).await?);
        answer(api::ListMetricHistoryResponse { metrics, next_page_token })
    }

    async fn list_datasets(&self, request: Request<api::ListDatasetsRequest>) -> Answer<api::ListDatasetsResponse> {
        let api::ListDatasetsRequest { experiment_ids } = request.into_inner();
        limits::dataset_experiments(experiment_ids.len())?;
        let datasets = self.store.dataset_summaries(&experiment_ids).await?;
        answer(api::ListDatasetsResponse { datasets: datasets.into_iter().map(Into::into).collect() })
    }

    async fn create_logged_model(
        &self,
        request: Request<api::CreateLoggedModelRequest>,
    ) -> Answer<api::CreateLoggedModelResponse> {
        let api::CreateLoggedModelRequest { experiment_id, name, model_type, source_run_id, params, tags } =
            request.into_inner();
        let draft = LoggedModelDraft::new(
            experiment_id,
            Some(text("name", name)?),
            text("model_type", model_type)?,
            text("source_run_id", source_run_id)?,
            pairs("params", params)?,
            pairs("tags", tags)?,
        )?;
        let model = self.store.create_logged_model(Millis::now(), &draft).await?;
        answer(api::CreateLoggedModelResponse { model: Some(model.into()) })
    }

    async fn get_logged_model(
        &self,
        request: Request<api::GetLoggedModelRequest>,
    ) -> Answer<api::GetLoggedModelResponse> {
        let api::GetLoggedModelRequest { model_id } = request.into_inner();
        let model = self.store.logged_model(&required("model_id", model_id)?).await?;
        answer(api::GetLoggedModelResponse { model: Some(model.into()) })
    }

    async fn search_logged_models(
        &self,
        request: Request<api::SearchLoggedModelsRequest>,
    ) -> Answer<api::SearchLoggedModelsResponse> {
        let search = from_wire::logged_model_search(request.into_inner())?;
        let (models, next_page_token) = to_wire::page(self.store.logged_models(&search).await?);
        answer(api::SearchLoggedModelsResponse { models, next_page_token })
    }

    async fn finalize_logged_model(
        &self,
        request: Request<api::FinalizeLoggedModelRequest>,
    ) -> Answer<api::FinalizeLoggedModelResponse> {
        let change = LoggedModelChange::Finalize(from_wire::logged_model_status(request.get_ref().status)?);
        let api::FinalizeLoggedModelRequest { model_id, status: _ } = request.into_inner();
        let model = self.change_logged_model(model_id, change).await?;
        answer(api::FinalizeLoggedModelResponse { model: Some(model) })
    }

    async fn add_logged_model_params(
        &self,
        request: Request<api::AddLoggedModelParamsRequest>,
    ) -> Answer<api::AddLoggedModelParamsResponse> {
        let api::AddLoggedModelParamsRequest { model_id, params } = request.into_inner();
        let change = LoggedModelChange::add_params(pairs("params", params)?)?;
        let model = self.change_logged_model(model_id, change).await?;
        answer(api::AddLoggedModelParamsResponse { model: Some(model) })
    }

    async fn set_logged_model_tags(
        &self,
        request: Request<api::SetLoggedModelTagsRequest>,
    ) -> Answer<api::SetLoggedModelTagsResponse> {
        let api::SetLoggedModelTagsRequest { model_id, tags } = request.into_inner();
        let change = LoggedModelChange::set_tags(pairs("tags", tags)?)?;
        let model = self.change_logged_model(model_id, change).await?;
        answer(api::SetLoggedModelTagsResponse { model: Some(model) })
    }

    async fn delete_logged_model_tag(
        &self,
        request: Request<api::DeleteLoggedModelTagRequest>,
    ) -> Answer<api::DeleteLoggedModelTagResponse> {
        let api::DeleteLoggedModelTagRequest { model_id, key } = request.into_inner();
        let change = LoggedModelChange::DeleteTag(required("key", key)?);
        self.change_logged_model(model_id, change).await?;
        answer(api::DeleteLoggedModelTagResponse {})
    }

    async fn delete_logged_model(
        &self,
        request: Request<api::DeleteLoggedModelRequest>,
    ) -> Answer<api::DeleteLoggedModelResponse> {
        let api::DeleteLoggedModelRequest { model_id } = request.into_inner();
        self.change_logged_model(model_id, LoggedModelChange::Delete).await?;
        answer(api::DeleteLoggedModelResponse {})
    }

    async fn search_models(&self, request: Request<api::SearchModelsRequest>) -> Answer<api::SearchModelsResponse> {
        let api::SearchModelsRequest { filter, order_by, page_size, page_token } = request.into_inner();
        let search = from_wire::search(Subject::RegisteredModels, filter, order_by, page_size, page_token)?;
        let page = self.store.search_models(&Search { view: View::All, ..search }).await?;
        let (models, next_page_token) = to_wire::page(page);
        answer(api::SearchModelsResponse { models, next_page_token })
    }

    async fn search_versions(
        &self,
        request: Request<api::SearchVersionsRequest>,
    ) -> Answer<api::SearchVersionsResponse> {
        let api::SearchVersionsRequest { filter, order_by, page_size, page_token } = request.into_inner();
        let search = from_wire::search(Subject::ModelVersions, filter, order_by, page_size, page_token)?;
        let page = self.store.search_versions(&Search { view: View::All, ..search }).await?;
        let (versions, next_page_token) = to_wire::page(page);
        answer(api::SearchVersionsResponse { versions, next_page_token })
    }

    async fn list_latest_versions(
        &self,
        request: Request<api::ListLatestVersionsRequest>,
    ) -> Answer<api::ListLatestVersionsResponse> {
        let api::ListLatestVersionsRequest { model, stages } = request.into_inner();
        let model = ModelName::parse("model", &model)?;
        let stages =
            stages.into_iter().map(|stage| from_wire::stage("stages", stage)).collect::<Result<Vec<_>, _>>()?;
        self.store.model(&model).await?;
        let mut items = self.store.latest_versions(&[model]).await?;
        items.retain(|version| stages.is_empty() || stages.contains(&version.stage));
        let (versions, _) = to_wire::page(Page { items, next: None });
        answer(api::ListLatestVersionsResponse { versions })
    }

    async fn transition_stage(
        &self,
        request: Request<api::TransitionStageRequest>,
    ) -> Answer<api::TransitionStageResponse> {
        let api::TransitionStageRequest { model, version, stage: wanted, archive_existing_versions } =
            request.into_inner();
        let (id, stage) = (VersionId::parse(&model, version)?, from_wire::stage("stage", wanted)?);
        if archive_existing_versions {
            limits::archiving(api::Stage::from(stage).as_str_name(), stage)?;
        }
        let version = self.store.move_to_stage(&Call::now(), &id, stage, archive_existing_versions).await?;
        self.feed.wake();
        answer(api::TransitionStageResponse { version: Some(version.into()) })
    }
}
