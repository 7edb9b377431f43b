//! `AuditService`: reading and verifying the audit log.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::{Request, Response};
use verdict_api::registry as api;
use verdict_api::registry::audit_service_server::AuditService;

use super::{Answer, page_of};
use crate::audit::{Anchor, Entry, Filter, Verified, verify};
use crate::convert;
use crate::error::Error;
use crate::model::Micros;
use crate::names::{AliasName, ModelName};
use crate::store::Everything;

const DEFAULT_VERIFIED: i32 = 100_000;
const MAX_VERIFIED: i32 = 1_000_000;

/// What the calls read.
pub(crate) struct Log {
    pub(crate) store: Arc<dyn Everything>,
}

#[async_trait]
impl AuditService for Log {
    async fn list_audit_entries(
        &self,
        request: Request<api::ListAuditEntriesRequest>,
    ) -> Answer<api::ListAuditEntriesResponse> {
        let api::ListAuditEntriesRequest { resource, caller, start_time, end_time, page_size, page_token } =
            request.into_inner();
        let size = convert::page_size(page_size)?;
        let below = convert::after(&page_token, |text| text.parse().ok().filter(|sequence| *sequence > 0))?;
        let filter = Filter {
            resource: resource.trim_end_matches('/').to_owned(),
            caller,
            from: start_time.map(|time| convert::micros("start_time", time)).transpose()?,
            until: end_time.map(|time| convert::micros("end_time", time)).transpose()?,
            below,
        };
        let found = self.store.audit_entries(&filter, size + 1).await?;
        let (entries, next_page_token) = page_of(found, size, |entry| entry.sequence.to_string());
        Ok(Response::new(api::ListAuditEntriesResponse { entries, next_page_token }))
    }

    async fn verify_audit(&self, request: Request<api::VerifyAuditRequest>) -> Answer<api::VerifyAuditResponse> {
        let api::VerifyAuditRequest { anchor, max_entries } = request.into_inner();
        let limit = if max_entries == 0 { DEFAULT_VERIFIED } else { max_entries };
        if !(1..=MAX_VERIFIED).contains(&limit) {
            let problem = format!("must be 1 to {MAX_VERIFIED}, or 0");
            return Err(Error::invalid("INVALID_PAGE_SIZE", "max_entries", problem).into());
        }
        let api::AuditAnchor { sequence, hash } = anchor.unwrap_or_default();
        if sequence < 0 {
            return Err(Error::invalid("INVALID_SEQUENCE", "anchor.sequence", "must be 0 or more").into());
        }
        let anchor = Anchor { sequence, hash: if sequence == 0 { String::new() } else { hash } };
        let verified = verify(&*self.store, anchor, u64::from(limit.unsigned_abs()), |_, _| {}).await?;
        let Verified { to, end, broken } = verified;
        let intact = broken.is_none();
        let (broken_sequence, problem) = broken.unwrap_or_default();
        let (verified, end) = (Some(to.into()), Some(end.into()));
        Ok(Response::new(api::VerifyAuditResponse { intact, verified, end, broken_sequence, problem }))
    }

    async fn get_alias_at(&self, request: Request<api::GetAliasAtRequest>) -> Answer<api::GetAliasAtResponse> {
        let api::GetAliasAtRequest { model, alias, time } = request.into_inner();
        let (model, alias) = (ModelName::parse("model", &model)?, AliasName::parse("alias", &alias)?);
        let time = time.map_or(Ok(Micros::now()), |time| convert::micros("time", time))?;
        let state = self.store.alias_at(&model, &alias, time).await?;
        let (version, since) = (state.version.unwrap_or(0), state.since.map(api::AuditEntry::from));
        Ok(Response::new(api::GetAliasAtResponse { version, since }))
    }
}

impl From<Entry> for api::AuditEntry {
    fn from(entry: Entry) -> Self {
        let Entry { sequence, time, caller, action, resource, before, after, hash } = entry;
        let time = Some(convert::timestamp(time));
        let (before_json, after_json) = (before.unwrap_or_default(), after.unwrap_or_default());
        Self { sequence, time, caller, action, resource, before_json, after_json, hash }
    }
}

impl From<Anchor> for api::AuditAnchor {
    fn from(anchor: Anchor) -> Self {
        let Anchor { sequence, hash } = anchor;
        Self { sequence, hash }
    }
}
