//! Decides one case: validate, score, explain, apply the policy, record, answer.

use std::sync::Arc;

use futures::{FutureExt, TryFutureExt, future::BoxFuture};
use time::OffsetDateTime;
use tracing::error;
use uuid::Uuid;

use crate::{
    admission::Call,
    catalog::{Catalog, Found},
    decision::{Decision, Features, canonical, features_hash},
    error::{Error, Result},
    log::{
        DecisionLog,
        writer::{NotRecorded, Writer},
    },
    metrics,
    reference::{Reference, Selector},
    routes::scores::Scores,
    schema::Problems,
    tabular::Tabular,
    traffic::Traffic,
};

/// Reasons of a decision when the caller does not say how many.
const USUAL_REASONS: usize = 4;

/// Makes decisions and remembers them.
pub struct Decider {
    log: Arc<dyn DecisionLog>,
    writer: Writer,
}

/// One case to decide.
#[derive(Clone, Debug)]
pub struct Case {
    pub asked: Asked,
    pub features: Features,
    /// The caller's; `None` when the service is to make one.
    pub request_id: Option<String>,
    /// Most reasons; the usual number when 0.
    pub max_reasons: usize,
}

/// Who is asked to decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// `name@alias` or `name/version`.
    Model(Reference),
    /// A route by its name.
    Route(String),
}

/// What the edge of the service knows and the domain does not make up.
#[derive(Debug)]
pub struct Moment {
    /// UUIDv7 of the decision to be.
    pub id: Uuid,
    pub now: OffsetDateTime,
    pub trace_id: String,
    pub call: Call,
}

impl Decider {
    /// Reads decisions from `log` and records them through `writer`, which writes to the same log.
    pub fn new(log: Arc<dyn DecisionLog>, writer: Writer) -> Self {
        Self { log, writer }
    }

    /// Decides a case. The decision is durable when this returns; a repeated request id returns the first decision.
    pub async fn decide(&self, traffic: &Traffic, case: Case, moment: Moment) -> Result<Decision> {
        let canonical = canonical(&case.features).map_err(anyhow::Error::from)?;
        let features_hash = features_hash(&canonical);
        if let Some(request_id) = &case.request_id
            && let Some(earlier) = self.log.find_request(request_id).await.map_err(unreadable)?
        {
            let is_the_same = match &case.asked {
                Asked::Route(route) => earlier.is_by_route(route, &features_hash),
                Asked::Model(Reference { model, selector: Selector::Alias(alias) }) => {
                    earlier.is_about(model, alias, earlier.version, &features_hash)
                }
                Asked::Model(Reference { model, selector: Selector::Version(version) }) => {
                    earlier.is_about(model, "", *version, &features_hash)
                }
            };
            return if is_the_same { Ok(earlier) } else { Err(Error::RequestIdReused(request_id.clone())) };
        }
        let name = match &case.asked {
            Asked::Model(reference) => {
                let decision = self.judge(&traffic.catalog, reference, "", case.clone(), features_hash, moment);
                return self.record(decision.await?).await;
            }
            Asked::Route(name) => name.clone(),
        };
        // A case that is decided again is decided by the same model, as long as weights stand.
        let call = moment.call.clone();
        let key = call.routing_key.as_deref().or(case.request_id.as_deref());
        let unknown = || format!("`{name}` is not a model reference: use name@alias or name/version");
        let choice = traffic.board.choose(&name, key).ok_or_else(|| Error::model(&unknown()))?;
        let record = traffic.record(choice, &call.admission);
        let reference = record.choice().target.reference.clone();
        let judged = self.judge(&traffic.catalog, &reference, &name, case, features_hash, moment).await;
        let decided = match judged {
            Ok(decision) => self.record(decision).await,
            Err(error) => Err(error),
        };
        if let Ok(decision) = &decided {
            let given = Scores::Numbers(vec![(0, decision.score)]);
            let work = |shadow, call| rescore(traffic.catalog.clone(), shadow, decision.features.clone(), call);
            traffic.shadow(record.choice(), &call, canonical.len(), &given, work);
        }
        record.end(decided.as_ref().map(|decision| (f64::from(decision.score), 1)).map_err(Error::code));
        decided
    }

    /// Makes the decision that `reference` makes of a case.
    async fn judge(
        &self,
        catalog: &Catalog,
        reference: &Reference,
        route: &str,
        case: Case,
        features_hash: String,
        moment: Moment,
    ) -> Result<Decision> {
        let Case { asked: _, features, request_id, max_reasons } = case;
        let Found { model, alias } = catalog.find(&reference.to_string())?;
        let tabular = model.tabular()?;
        let policy = tabular.policy.as_ref().ok_or_else(|| Error::NoPolicy(reference.to_string()))?;
        let row = lay_out(tabular, &features)?;
        let (explained, _) = tabular.explain(row, moment.call.admission).await?;
        // A model with a policy has one output.
        let margin = explained.margins[0];
        let mut score = [margin];
        tabular.model().transform(&mut score);
        if !score[0].is_finite() {
            let problem = "give no finite score: a value is missing that the model needs, or too large";
            return Err(Error::field("features", problem));
        }
        let most = if max_reasons == 0 { USUAL_REASONS } else { max_reasons };
        Ok(Decision {
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
            route: route.to_owned(),
        })
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

/// Lays the features of one case out as the model's columns.
fn lay_out(tabular: &Tabular, features: &Features) -> Result<Vec<f32>> {
    let (mut row, mut problems) = (Vec::new(), Problems::default());
    let named = features.iter().map(|(name, value)| (name.as_str(), Some(value)));
    tabular.schema.lay_out(named, &|| "features".to_owned(), &mut row, &mut problems);
    problems.into_result().map_err(Error::Invalid)?;
    Ok(row)
}

/// Scores a case that was decided, as a shadow.
fn rescore(
    catalog: Arc<Catalog>,
    reference: String,
    features: Features,
    call: Call,
) -> BoxFuture<'static, std::result::Result<Scores, String>> {
    let score = async move {
        let found = catalog.find(&reference)?;
        let tabular = found.model.tabular()?;
        let (mut scores, _) = tabular.margins(lay_out(tabular, &features)?, call.admission).await?;
        tabular.model().transform(&mut scores);
        Ok(Scores::Numbers(scores.into_iter().map(|score| (0, score)).collect()))
    };
    score.map_err(|error: Error| error.to_string()).boxed()
}

/// Cuts a time to what the log keeps.
fn microseconds(time: OffsetDateTime) -> OffsetDateTime {
    time.replace_nanosecond(time.nanosecond() / 1000 * 1000).unwrap_or(time)
}

fn unreadable(failure: anyhow::Error) -> Error {
    error!("the decision log cannot be read: {failure:#}");
    Error::LogUnreadable
}
