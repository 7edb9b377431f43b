//! A decision as a row.

use anyhow::Context;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::decision::{Decision, canonical};

/// One row of the table `decisions`.
#[derive(sqlx::FromRow)]
pub(super) struct Record {
    pub(super) decision_id: String,
    pub(super) request_id: String,
    pub(super) time_us: i64,
    pub(super) model: String,
    pub(super) version: i64,
    pub(super) alias: String,
    pub(super) digest: String,
    pub(super) features: String,
    pub(super) features_hash: String,
    pub(super) score: f64,
    pub(super) margin: f64,
    pub(super) outcome: String,
    pub(super) reasons: String,
    pub(super) policy: String,
    pub(super) trace_id: String,
    pub(super) route: String,
}

impl TryFrom<&Decision> for Record {
    type Error = anyhow::Error;

    fn try_from(decision: &Decision) -> anyhow::Result<Self> {
        let Decision {
            id,
            request_id,
            time,
            model,
            version,
            alias,
            digest,
            features,
            features_hash,
            score,
            margin,
            outcome,
            reasons,
            policy,
            trace_id,
            route,
        } = decision;
        Ok(Self {
            decision_id: id.to_string(),
            request_id: request_id.clone(),
            time_us: i64::try_from(time.unix_timestamp_nanos() / 1000)?,
            model: model.clone(),
            version: *version,
            alias: alias.clone(),
            digest: digest.clone(),
            features: canonical(features)?,
            features_hash: features_hash.clone(),
            score: f64::from(*score),
            margin: f64::from(*margin),
            outcome: outcome.clone(),
            reasons: serde_json::to_string(reasons)?,
            policy: policy.clone(),
            trace_id: trace_id.clone(),
            route: route.clone(),
        })
    }
}

impl TryFrom<Record> for Decision {
    type Error = anyhow::Error;

    #[expect(clippy::cast_possible_truncation, reason = "the columns hold what was an f32 when it was written")]
    fn try_from(record: Record) -> anyhow::Result<Self> {
        let damaged = || format!("decision {} is damaged in the log", record.decision_id);
        Ok(Self {
            id: Uuid::parse_str(&record.decision_id).with_context(damaged)?,
            time: OffsetDateTime::from_unix_timestamp_nanos(i128::from(record.time_us) * 1000).with_context(damaged)?,
            features: serde_json::from_str(&record.features).with_context(damaged)?,
            reasons: serde_json::from_str(&record.reasons).with_context(damaged)?,
            request_id: record.request_id,
            model: record.model,
            version: record.version,
            alias: record.alias,
            digest: record.digest,
            features_hash: record.features_hash,
            score: record.score as f32,
            margin: record.margin as f32,
            outcome: record.outcome,
            policy: record.policy,
            trace_id: record.trace_id,
            route: record.route,
        })
    }
}
