//! The Open Inference Protocol v2, with Triton's extensions where its clients need them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::FutureExt;
use tonic::{Request, Response, Status, Streaming};
use verdict_api::inference::{
    InferParameter, ModelConfigRequest, ModelConfigResponse, ModelInferRequest, ModelInferResponse,
    ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse, ModelStatisticsRequest,
    ModelStatisticsResponse, ModelStreamInferResponse, RepositoryIndexRequest, RepositoryIndexResponse,
    RepositoryModelLoadRequest, RepositoryModelLoadResponse, RepositoryModelUnloadRequest,
    RepositoryModelUnloadResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest,
    ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse, grpc_inference_service_server,
    infer_parameter::ParameterChoice,
};
use verdict_api::predict::{LoadModelRequest, UnloadModelRequest, serving_service_server::ServingService};

use super::{Answers, lookup, serving, streams};
use crate::{admission::Admission, catalog::Catalog, convert, error::Error, traffic::Traffic};

/// Beyond the six calls of the protocol, by Triton's names.
const EXTENSIONS: [&str; 4] = ["model_configuration", "model_repository", "statistics", "schedule_policy"];

pub(super) struct Inference {
    pub(super) traffic: Traffic,
    pub(super) serving: Arc<serving::Service>,
    /// Most time of one request on a stream.
    pub(super) patience: Duration,
}

/// Answers by a route, where the name is one.
async fn infer(traffic: &Traffic, request: Request<ModelInferRequest>) -> Result<ModelInferResponse, Status> {
    let name = request.get_ref().model_name.clone();
    let handler = |catalog: Arc<Catalog>, request| async move { directly(&catalog, request).await }.boxed();
    let response = traffic.call(request, handler).await?.into_inner();
    Ok(ModelInferResponse { model_name: name, ..response })
}

async fn directly(
    catalog: &Catalog,
    request: Request<ModelInferRequest>,
) -> Result<Response<ModelInferResponse>, Status> {
    let admission = Admission::of(&request)?;
    let call = convert::inference::infer(request.into_inner(), admission)?;
    let found = lookup::find(catalog, "model_name", &call.model, "model_version", &call.version)?;
    let answered = found.model.served.infer(call.asked).await?;
    Ok(Response::new(convert::inference::inferred(&found, call.model, call.id, answered, call.is_raw)))
}

#[tonic::async_trait]
impl grpc_inference_service_server::GrpcInferenceService for Inference {
    type ModelStreamInferStream = Answers<ModelStreamInferResponse>;

    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: self.traffic.catalog.is_warm() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let ModelReadyRequest { name, version } = request.into_inner();
        match lookup::find(&self.traffic.catalog, "name", &name, "version", &version) {
            Ok(_) => Ok(Response::new(ModelReadyResponse { ready: true })),
            Err(Error::NotServed { .. } | Error::Loading { .. }) => {
                Ok(Response::new(ModelReadyResponse { ready: false }))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse {
            name: "verdict-predict".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: EXTENSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let ModelMetadataRequest { name, version } = request.into_inner();
        let found = lookup::find(&self.traffic.catalog, "name", &name, "version", &version)?;
        let slots = self.traffic.catalog.slots();
        let same = slots.iter().filter_map(|slot| slot.current()).map(|model| model.release.clone());
        let versions: BTreeSet<i64> =
            same.filter(|release| release.model == found.model.release.model).map(|release| release.version).collect();
        let versions = versions.into_iter().collect();
        Ok(Response::new(convert::inference::metadata(&found.model, name, versions)))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        infer(&self.traffic, request).await.map(Response::new)
    }

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let traffic = self.traffic.clone();
        Ok(streams::each(request, streams::Order::Asked, self.patience, move |request| {
            let traffic = traffic.clone();
            async move {
                let (name, id) = (request.get_ref().model_name.clone(), request.get_ref().id.clone());
                match streams::guarded(infer(&traffic, request)).await {
                    Ok(mut response) => {
                        let last = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
                        response.parameters.insert("triton_final_response".to_owned(), last);
                        ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) }
                    }
                    Err(status) => ModelStreamInferResponse {
                        error_message: status.message().to_owned(),
                        infer_response: Some(ModelInferResponse { model_name: name, id, ..Default::default() }),
                    },
                }
            }
            .boxed()
        }))
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        let ModelConfigRequest { name, version } = request.into_inner();
        let found = lookup::find(&self.traffic.catalog, "name", &name, "version", &version)?;
        let config = convert::inference::config(&found.model, name);
        Ok(Response::new(ModelConfigResponse { config: Some(config) }))
    }

    async fn model_statistics(
        &self,
        request: Request<ModelStatisticsRequest>,
    ) -> Result<Response<ModelStatisticsResponse>, Status> {
        let ModelStatisticsRequest { name, version } = request.into_inner();
        let model_stats = if name.is_empty() {
            let slots = self.traffic.catalog.slots();
            slots.iter().filter_map(|slot| slot.current()).map(|it| convert::inference::statistics(&it)).collect()
        } else {
            let found = lookup::find(&self.traffic.catalog, "name", &name, "version", &version)?;
            vec![convert::inference::statistics(&found.model)]
        };
        Ok(Response::new(ModelStatisticsResponse { model_stats }))
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        let RepositoryIndexRequest { repository_name: _, ready } = request.into_inner();
        let slots = self.traffic.catalog.slots();
        let standings = slots.iter().map(|slot| slot.standing());
        let models = standings.map(convert::inference::indexed).filter(|model| !ready || model.state == "READY");
        Ok(Response::new(RepositoryIndexResponse { models: models.collect() }))
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Result<Response<RepositoryModelLoadResponse>, Status> {
        let RepositoryModelLoadRequest { repository_name, model_name, parameters } = request.into_inner();
        let reference = lookup::repository(&self.traffic.catalog, repository_name, model_name, parameters)?;
        if let Some(slot) = self.traffic.catalog.slot(&reference) {
            // To load what is loaded is to look whether there is something newer; meanwhile it serves as it is.
            slot.wake.notify_one();
        }
        let load = LoadModelRequest { reference: reference.to_string(), request_id: String::new() };
        self.serving.load_model(Request::new(load)).await?;
        Ok(Response::new(RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Result<Response<RepositoryModelUnloadResponse>, Status> {
        let RepositoryModelUnloadRequest { repository_name, model_name, parameters } = request.into_inner();
        let reference = lookup::repository(&self.traffic.catalog, repository_name, model_name, parameters)?;
        let unload = UnloadModelRequest { reference: reference.to_string(), request_id: String::new() };
        self.serving.unload_model(Request::new(unload)).await?;
        Ok(Response::new(RepositoryModelUnloadResponse {}))
    }
}
