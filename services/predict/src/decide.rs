//! Decides one case: validate, score, explain, apply the policy, record, answer.

use std::{sync::Arc, time::Instant};

use time::OffsetDateTime;
use tracing::error;
use uuid::Uuid;

use crate::{
    catalog::{Catalog, Found},
    decision::{Decision, Features, canonical, features_hash},
    error::{Error, Result},
    log::{
        DecisionLog,
        writer::{NotRecorded, Writer},
    },
    metrics,
    reference::{Reference, Selector},
    schema::Problems,
};

/// Reasons of a decision when the caller does not say how many.
const USUAL_REASONS: usize = 4;

/// Makes decisions and remembers them.
pub struct Decider {
    log: Arc<dyn DecisionLog>,
    writer: Writer,
}

/// One case to decide.
#[derive(Debug)]
pub struct Case {
    /// As asked for: `name@alias` or `name/version`.
    pub model: Reference,
    pub features: Features,
    /// The caller's; `None` when the service is to make one.
    pub request_id: Option<String>,
    /// Most reasons; the usual number when 0.
    pub max_reasons: usize,
}

/// What the edge of the service knows and the domain does not make up.
#[derive(Debug)]
pub struct Moment {
    /// UUIDv7 of the decision to be.
    pub id: Uuid,
    pub now: OffsetDateTime,
    pub trace_id: String,
    pub deadline: Option<Instant>,
}

impl Decider {
    /// Reads decisions from `log` and records them through `writer`, which writes to the same log.
    pub fn new(log: Arc<dyn DecisionLog>, writer: Writer) -> Self {
        Self { log, writer }
    }

    /// Decides a case. The decision is durable when this returns; a repeated request id returns the first decision.
    pub async fn decide(&self, catalog: &Catalog, case: Case, moment: Moment) -> Result<Decision> {
        let Case { model: asked, features, request_id, max_reasons } = case;
        let canonical = canonical(&features).map_err(anyhow::Error::from)?;
        let features_hash = features_hash(&canonical);
        if let Some(request_id) = &request_id
            && let Some(earlier) = self.log.find_request(request_id).await.map_err(unreadable)?
        {
            let version = match asked.selector {
                Selector::Version(version) => version,
                Selector::Alias(_) => earlier.version,
            };
            return if earlier.is_about(&asked.model, asked.alias(), version, &features_hash) {
                Ok(earlier)
            } else {
                Err(Error::RequestIdReused(request_id.clone()))
            };
        }

        let Found { model, alias } = catalog.find(&asked.to_string())?;
        let tabular = model.tabular()?;
        let policy = tabular.policy.as_ref().ok_or_else(|| Error::NoPolicy(asked.to_string()))?;
        let (mut row, mut problems) = (Vec::new(), Problems::default());
        let named = features.iter().map(|(name, value)| (name.as_str(), Some(value)));
        tabular.schema.lay_out(named, &|| "features".to_owned(), &mut row, &mut problems);
        problems.into_result().map_err(Error::Invalid)?;

        let (explained, _) = tabular.explain(row, moment.deadline).await?;
        // A model with a policy has one output.
        let margin = explained.margins[0];
        let mut score = [margin];
        tabular.model().transform(&mut score);
        if !score[0].is_finite() {
            let problem = "give no finite score: a value is missing that the model needs, or too large";
            return Err(Error::field("features", problem));
        }
        let most = if max_reasons == 0 { USUAL_REASONS } else { max_reasons };
        let decision = Decision {
            id: moment.id,
            request_id: request_id.unwrap_or_else(|| moment.id.to_string()),
            time: microseconds(moment.now),
            model: model.release.model.clone(),
            version: model.release.version,
            alias,
            digest: model.release.digest.clone(),
            features,
            features_hash,
            score: score[0],
            margin,
            outcome: policy.outcome(score[0]).to_owned(),
            reasons: policy.reasons(tabular.schema.inputs(), &explained.shap, most),
            policy: policy.name(),
            trace_id: moment.trace_id,
        };
        self.record(decision).await
    }

    /// Returns a recorded decision.
    pub async fn find(&self, id: Uuid) -> Result<Decision> {
        self.log.find(id).await.map_err(unreadable)?.ok_or(Error::DecisionNotFound(id))
    }

    /// Lists recorded decisions newest first, made before `before` where given.
    pub async fn list(&self, model: Option<&str>, before: Option<Uuid>, limit: u32) -> Result<Vec<Decision>> {
        self.log.list(model, before, limit).await.map_err(unreadable)
    }

    async fn record(&self, decision: Decision) -> Result<Decision> {
        let standing = self.writer.record(decision.clone()).await.map_err(|refused| match refused {
            NotRecorded::Full => Error::LogBusy,
            NotRecorded::Failed => Error::NotRecorded,
        })?;
        if standing.id == decision.id {
            metrics::decided(&decision.model, &decision.outcome);
        } else if !standing.answers_the_same(&decision) {
            return Err(Error::RequestIdReused(decision.request_id));
        }
        Ok(standing)
    }
}

/// Cuts a time to what the log keeps.
fn microseconds(time: OffsetDateTime) -> OffsetDateTime {
    time.replace_nanosecond(time.nanosecond() / 1000 * 1000).unwrap_or(time)
}

fn unreadable(failure: anyhow::Error) -> Error {
    error!("the decision log cannot be read: {failure:#}");
    Error::LogUnreadable
}
