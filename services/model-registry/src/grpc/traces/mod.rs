//! The gRPC service of traces and assessments: convert in, one call, convert out.
//!
//! `from_wire` reads requests, `to_wire` writes entities; what callers say is checked where REST's is, in `tracking::traces`.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::{Request, Response, Status};
use verdict_api::registry as api;
use verdict_api::registry::trace_service_server::TraceService;

use crate::error::{Entity, Error};
use crate::store::Everything;
use crate::tracking::Millis;
use crate::tracking::traces::{Doomed, searched, tag, trace_ids};

mod from_wire;
mod to_wire;

type Answer<T> = Result<Response<T>, Status>;

/// What the calls work on.
pub(crate) struct Traces {
    pub(crate) store: Arc<dyn Everything>,
}

fn answer<T>(answer: T) -> Answer<T> {
    Ok(Response::new(answer))
}

#[async_trait]
impl TraceService for Traces {
    async fn start_trace(&self, request: Request<api::StartTraceRequest>) -> Answer<api::StartTraceResponse> {
        let api::StartTraceRequest { trace } = request.into_inner();
        let trace = self.store.start_trace(&from_wire::trace(trace)?).await?;
        answer(api::StartTraceResponse { trace: Some(trace.into()) })
    }

    async fn end_trace(&self, request: Request<api::EndTraceRequest>) -> Answer<api::EndTraceResponse> {
        let (id, end) = from_wire::trace_end(request.into_inner())?;
        let trace = self.store.end_trace(&id, &end).await?;
        answer(api::EndTraceResponse { trace: Some(trace.into()) })
    }

    async fn get_trace(&self, request: Request<api::GetTraceRequest>) -> Answer<api::GetTraceResponse> {
        let api::GetTraceRequest { trace_id, include_spans } = request.into_inner();
        if !include_spans {
            let trace = self.store.trace(&trace_id).await?;
            return answer(api::GetTraceResponse { trace: Some(trace.into()), spans: Vec::new() });
        }
        let found = self.store.traces_with_spans(std::slice::from_ref(&trace_id)).await?.pop();
        let (trace, spans) = found.ok_or_else(|| Error::NotFound(Entity::Trace(trace_id)))?;
        let spans = spans.into_iter().map(api::Span::from).collect();
        answer(api::GetTraceResponse { trace: Some(trace.into()), spans })
    }

    async fn search_traces(&self, request: Request<api::SearchTracesRequest>) -> Answer<api::SearchTracesResponse> {
        let search = from_wire::search(request.into_inner())?;
        searched(&search.experiments)?;
        let page = self.store.search_traces(&search).await?;
        let traces = page.traces.into_iter().map(api::Trace::from).collect();
        let next_page_token = page.next.map(|next| next.token()).unwrap_or_default();
        answer(api::SearchTracesResponse { traces, next_page_token })
    }

    async fn delete_traces(&self, request: Request<api::DeleteTracesRequest>) -> Answer<api::DeleteTracesResponse> {
        let api::DeleteTracesRequest { experiment_id, trace_ids, max_time_ms, max_traces } = request.into_inner();
        let doomed = Doomed::of(trace_ids, max_time_ms.map(Millis), max_traces.map(i64::from))?;
        let deleted = self.store.delete_traces(experiment_id, &doomed).await?;
        let deleted = i64::try_from(deleted).map_err(|error| Error::Internal(error.into()))?;
        answer(api::DeleteTracesResponse { deleted })
    }

    async fn set_trace_tag(&self, request: Request<api::SetTraceTagRequest>) -> Answer<api::SetTraceTagResponse> {
        let api::SetTraceTagRequest { trace_id, key, value } = request.into_inner();
        let value = tag(&key, value)?;
        self.store.change_trace_tag(&trace_id, &key, Some(&value)).await?;
        answer(api::SetTraceTagResponse {})
    }

    async fn delete_trace_tag(
        &self,
        request: Request<api::DeleteTraceTagRequest>,
    ) -> Answer<api::DeleteTraceTagResponse> {
        let api::DeleteTraceTagRequest { trace_id, key } = request.into_inner();
        self.store.change_trace_tag(&trace_id, &key, None).await?;
        answer(api::DeleteTraceTagResponse {})
    }

    async fn link_traces_to_run(
        &self,
        request: Request<api::LinkTracesToRunRequest>,
    ) -> Answer<api::LinkTracesToRunResponse> {
        let api::LinkTracesToRunRequest { run_id, trace_ids: ids } = request.into_inner();
        trace_ids(&ids)?;
        self.store.link_traces(&run_id, &ids).await?;
        answer(api::LinkTracesToRunResponse {})
    }

    async fn create_assessment(
        &self,
        request: Request<api::CreateAssessmentRequest>,
    ) -> Answer<api::CreateAssessmentResponse> {
        let api::CreateAssessmentRequest { assessment } = request.into_inner();
        let assessment = self.store.add_assessment(&from_wire::assessment(assessment)?).await?;
        answer(api::CreateAssessmentResponse { assessment: Some(assessment.into()) })
    }

    async fn get_assessment(&self, request: Request<api::GetAssessmentRequest>) -> Answer<api::GetAssessmentResponse> {
        let api::GetAssessmentRequest { trace_id, assessment_id } = request.into_inner();
        let assessment = self.store.assessment(&trace_id, &assessment_id).await?;
        answer(api::GetAssessmentResponse { assessment: Some(assessment.into()) })
    }

    async fn update_assessment(
        &self,
        request: Request<api::UpdateAssessmentRequest>,
    ) -> Answer<api::UpdateAssessmentResponse> {
        let (trace, id, change) = from_wire::assessment_change(request.into_inner())?;
        let assessment = self.store.change_assessment(Millis::now(), &trace, &id, &change).await?;
        answer(api::UpdateAssessmentResponse { assessment: Some(assessment.into()) })
    }

    async fn delete_assessment(
        &self,
        request: Request<api::DeleteAssessmentRequest>,
    ) -> Answer<api::DeleteAssessmentResponse> {
        let api::DeleteAssessmentRequest { trace_id, assessment_id } = request.into_inner();
        self.store.delete_assessment(&trace_id, &assessment_id).await?;
        answer(api::DeleteAssessmentResponse {})
    }
}
