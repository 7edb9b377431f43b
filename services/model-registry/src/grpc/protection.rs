//! `ProtectionService`: rules of aliases, checks and approvals.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::{Request, Response};
use verdict_api::registry as api;
use verdict_api::registry::protection_service_server::ProtectionService;

use super::Answer;
use crate::convert;
use crate::error::Error;
use crate::feed::Feed;
use crate::names::{AliasName, ModelName, VersionId};
use crate::protection::{Act, Approval, Check, RecordedCheck, Rule, Standing};
use crate::store::{Call, Everything};

/// What the calls work on.
pub(crate) struct Guard {
    pub(crate) store: Arc<dyn Everything>,
    pub(crate) feed: Arc<Feed>,
}

impl Guard {
    async fn act<T>(&self, call: &Call, act: Act, answer: T) -> Answer<T> {
        act.check()?;
        self.store.act(call, &act).await?;
        self.feed.wake();
        Ok(Response::new(answer))
    }
}

#[async_trait]
impl ProtectionService for Guard {
    async fn set_alias_rule(&self, request: Request<api::SetAliasRuleRequest>) -> Answer<api::SetAliasRuleResponse> {
        let api::SetAliasRuleRequest { model, rule, etag, request_id, validate_only } = request.into_inner();
        let call = convert::call(request_id, etag, validate_only)?;
        let missing = || Error::invalid("INVALID_RULE", "rule", "must be given");
        let api::AliasRule { alias, required_checks, approvals, etag_required } = rule.ok_or_else(missing)?;
        let approvals = u32::try_from(approvals)
            .map_err(|_| Error::invalid("INVALID_RULE", "rule.approvals", "must be 0 or more"))?;
        let (model, alias) = (ModelName::parse("model", &model)?, AliasName::parse("rule.alias", &alias)?);
        let rule = Rule { required_checks: required_checks.into_iter().collect(), approvals, etag_required };
        self.act(&call, Act::SetRule { model, alias, rule }, api::SetAliasRuleResponse {}).await
    }

    async fn delete_alias_rule(
        &self,
        request: Request<api::DeleteAliasRuleRequest>,
    ) -> Answer<api::DeleteAliasRuleResponse> {
        let api::DeleteAliasRuleRequest { model, alias, etag, request_id, validate_only } = request.into_inner();
        let call = convert::call(request_id, etag, validate_only)?;
        let (model, alias) = (ModelName::parse("model", &model)?, AliasName::parse("alias", &alias)?);
        self.act(&call, Act::DeleteRule { model, alias }, api::DeleteAliasRuleResponse {}).await
    }

    async fn list_alias_rules(
        &self,
        request: Request<api::ListAliasRulesRequest>,
    ) -> Answer<api::ListAliasRulesResponse> {
        let api::ListAliasRulesRequest { model } = request.into_inner();
        let rules = self.store.rules(&ModelName::parse("model", &model)?).await?;
        let rule = |(alias, rule): (String, Rule)| {
            let Rule { required_checks, approvals, etag_required } = rule;
            // At most ten: it always fits.
            let approvals = i32::try_from(approvals).unwrap_or(i32::MAX);
            api::AliasRule { alias, required_checks: required_checks.into_iter().collect(), approvals, etag_required }
        };
        Ok(Response::new(api::ListAliasRulesResponse { rules: rules.into_iter().map(rule).collect() }))
    }

    async fn record_check(&self, request: Request<api::RecordCheckRequest>) -> Answer<api::RecordCheckResponse> {
        let api::RecordCheckRequest { model, version, check, request_id, validate_only } = request.into_inner();
        let call = convert::call(request_id, String::new(), validate_only)?;
        let missing = || Error::invalid("INVALID_CHECK", "check", "must be given");
        let api::Check { name, passed, summary, caller: _, time: _ } = check.ok_or_else(missing)?;
        let of = VersionId::parse(&model, version)?;
        let check = Check { passed, summary };
        self.act(&call, Act::RecordCheck { of, name, check }, api::RecordCheckResponse {}).await
    }

    async fn approve_version(
        &self,
        request: Request<api::ApproveVersionRequest>,
    ) -> Answer<api::ApproveVersionResponse> {
        let api::ApproveVersionRequest { model, version, alias, comment, request_id, validate_only } =
            request.into_inner();
        let call = convert::call(request_id, String::new(), validate_only)?;
        let (of, alias) = (VersionId::parse(&model, version)?, AliasName::parse("alias", &alias)?);
        self.act(&call, Act::Approve { of, alias, comment }, api::ApproveVersionResponse {}).await
    }

    async fn get_standing(&self, request: Request<api::GetStandingRequest>) -> Answer<api::GetStandingResponse> {
        let api::GetStandingRequest { model, version } = request.into_inner();
        let Standing { author, checks, approvals } = self.store.standing(&VersionId::parse(&model, version)?).await?;
        let check = |(name, check): (String, RecordedCheck)| {
            let RecordedCheck { passed, summary, caller, time } = check;
            api::Check { name, passed, summary, caller, time: Some(convert::timestamp(time)) }
        };
        let approval = |approval: Approval| {
            let Approval { alias, approver, comment, time } = approval;
            api::Approval { alias, approver, comment, time: Some(convert::timestamp(time)) }
        };
        Ok(Response::new(api::GetStandingResponse {
            author,
            checks: checks.into_iter().map(check).collect(),
            approvals: approvals.into_iter().map(approval).collect(),
        }))
    }
}
