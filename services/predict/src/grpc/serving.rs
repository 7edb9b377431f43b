//! Loading and unloading, and routes.

use std::sync::Arc;

use anyhow::Context;
use tonic::{Request, Response, Status};
use verdict_api::predict::{
    DeleteRouteRequest, DeleteRouteResponse, GetRouteReportRequest, GetRouteReportResponse, GetRouteRequest,
    GetRouteResponse, ListRoutesRequest, ListRoutesResponse, LoadModelRequest, LoadModelResponse, SetRouteRequest,
    SetRouteResponse, UnloadModelRequest, UnloadModelResponse, serving_service_server::ServingService,
};

use crate::{
    convert::{self, serving as wire},
    error::{self, Error},
    follow::Follower,
    repeats::Repeats,
    routes::board::Board,
};

pub(super) struct Service {
    follower: Arc<Follower>,
    board: Arc<Board>,
    repeats: Repeats,
}

impl Service {
    pub(super) fn new(follower: Arc<Follower>, board: Arc<Board>) -> Self {
        Self { follower, board, repeats: Repeats::default() }
    }
}

/// Does what blocks until it is on disk.
async fn blocking<T: Send + 'static>(
    board: Arc<Board>,
    work: impl FnOnce(&Board) -> error::Result<T> + Send + 'static,
) -> error::Result<T> {
    tokio::task::spawn_blocking(move || work(&board)).await.context("changing a route panicked")?
}

#[tonic::async_trait]
impl ServingService for Service {
    async fn load_model(&self, request: Request<LoadModelRequest>) -> Result<Response<LoadModelResponse>, Status> {
        let request = request.into_inner();
        let reference = wire::reference("reference", &request.reference)?;
        let (follower, board) = (self.follower.clone(), self.board.clone());
        let load = async move {
            let standing = follower.load(&reference).await?;
            blocking(board, Board::save_models).await?;
            Ok(LoadModelResponse { model: Some(convert::standing(standing)) })
        };
        // Goes on when the caller no longer waits: what cannot be loaded must not stay, what can must be saved.
        let load = async { self.follower.tasks.spawn(load).await.context("loading a model panicked")? };
        Ok(Response::new(self.repeats.once("LoadModel", &request.request_id, &request, load).await?))
    }

    async fn unload_model(
        &self,
        request: Request<UnloadModelRequest>,
    ) -> Result<Response<UnloadModelResponse>, Status> {
        let request = request.into_inner();
        let reference = wire::reference("reference", &request.reference)?;
        let unload = async {
            let follower = self.follower.clone();
            let unload = move |board: &Board| {
                let gone = || match follower.unload(&reference) {
                    true => Ok(()),
                    false => Err(follower.catalog.not_served(&reference.to_string())),
                };
                board.unless_named(&reference, gone)
            };
            blocking(self.board.clone(), unload).await?;
            Ok(UnloadModelResponse {})
        };
        Ok(Response::new(self.repeats.once("UnloadModel", &request.request_id, &request, unload).await?))
    }

    async fn set_route(&self, request: Request<SetRouteRequest>) -> Result<Response<SetRouteResponse>, Status> {
        let request = request.into_inner();
        let missing = || Error::field("route", "is missing");
        let (route, etag) = wire::route(request.route.clone().ok_or_else(missing)?)?;
        let validate_only = request.validate_only;
        let set = async {
            let kept = blocking(self.board.clone(), move |board| board.set(route, &etag, validate_only)).await?;
            Ok(SetRouteResponse { route: Some(wire::standing(kept)) })
        };
        let id = if validate_only { "" } else { request.request_id.as_str() };
        Ok(Response::new(self.repeats.once("SetRoute", id, &request, set).await?))
    }

    async fn get_route(&self, request: Request<GetRouteRequest>) -> Result<Response<GetRouteResponse>, Status> {
        let GetRouteRequest { name } = request.into_inner();
        let route = wire::standing(self.board.get(&name)?.kept.clone());
        Ok(Response::new(GetRouteResponse { route: Some(route) }))
    }

    async fn list_routes(&self, request: Request<ListRoutesRequest>) -> Result<Response<ListRoutesResponse>, Status> {
        let ListRoutesRequest { page_size, page_token } = request.into_inner();
        let (size, after) = wire::page(page_size, &page_token)?;
        let mut found = self.board.list(&after, size + 1);
        let is_last = found.len() <= size;
        found.truncate(size);
        let last = found.last().filter(|_| !is_last);
        let next_page_token = last.map(|live| live.kept.route.name.clone()).unwrap_or_default();
        let routes = found.iter().map(|live| wire::standing(live.kept.clone())).collect();
        Ok(Response::new(ListRoutesResponse { routes, next_page_token }))
    }

    async fn delete_route(
        &self,
        request: Request<DeleteRouteRequest>,
    ) -> Result<Response<DeleteRouteResponse>, Status> {
        let request = request.into_inner();
        let (name, etag) = (request.name.clone(), request.etag.clone());
        let delete = async {
            blocking(self.board.clone(), move |board| board.delete(&name, &etag)).await?;
            Ok(DeleteRouteResponse {})
        };
        Ok(Response::new(self.repeats.once("DeleteRoute", &request.request_id, &request, delete).await?))
    }

    async fn get_route_report(
        &self,
        request: Request<GetRouteReportRequest>,
    ) -> Result<Response<GetRouteReportResponse>, Status> {
        let GetRouteReportRequest { name, recent_pairs } = request.into_inner();
        let pairs = wire::pairs(recent_pairs)?;
        Ok(Response::new(wire::report(&*self.board.get(&name)?, pairs)))
    }
}
