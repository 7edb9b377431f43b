//! What a call says about itself besides its message: until when, for whom, how urgently, and by which key it is routed.
//!
//! Read in one place, from the metadata of the call, bounded and checked. Every queue takes an [`Admission`].

use std::{sync::Arc, time::Instant};

use tonic::{Request, metadata::MetadataMap};
use verdict_chassis::{context, status::Field};

use crate::error::{Error, Result};

/// Metadata that names whose share of the queue a call takes.
pub const TENANT: &str = "x-tenant-id";
/// Metadata that says how urgent a call is.
pub const PRIORITY: &str = "x-priority";
/// Metadata whose equal values reach the same target of a route.
pub const ROUTING_KEY: &str = "x-routing-key";

const MAX_TENANT: usize = 128;
const MAX_ROUTING_KEY: usize = 256;

/// How urgent work is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Somebody waits for it.
    #[default]
    Interactive,
    /// It may wait, but not for ever.
    Batch,
    /// Nobody waits for it: it takes only what is spare. Callers cannot ask for it.
    Shadow,
}

/// What lets work into a queue.
#[derive(Clone, Debug, Default)]
pub struct Admission {
    /// When nobody waits for it any more.
    pub deadline: Option<Instant>,
    /// Whose work it is; empty for callers that do not say.
    pub tenant: Arc<str>,
    pub priority: Priority,
}

/// What the metadata of a call says.
#[derive(Clone, Debug, Default)]
pub struct Call {
    pub admission: Admission,
    pub routing_key: Option<String>,
}

impl From<Option<Instant>> for Admission {
    /// Interactive work of nobody in particular.
    fn from(deadline: Option<Instant>) -> Self {
        Self { deadline, ..Self::default() }
    }
}

impl Admission {
    /// Reads what `request` says, as [`Call::of`] does.
    pub fn of<T>(request: &Request<T>) -> Result<Self> {
        Ok(Call::of(request)?.admission)
    }
}

impl Call {
    /// Reads the call from the request: as a route has put it there, else from its metadata.
    pub fn of<T>(request: &Request<T>) -> Result<Self> {
        match request.extensions().get::<Self>() {
            Some(call) => Ok(call.clone()),
            None => Self::read(request.metadata(), context::of(request).deadline),
        }
    }

    fn read(metadata: &MetadataMap, deadline: Option<Instant>) -> Result<Self> {
        let mut problems = Vec::new();
        let mut text = |name: &'static str, most: usize| {
            let value = metadata.get(name)?;
            let read = value.to_str().ok().filter(|text| (1..=most).contains(&text.len()));
            match read.filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic())) {
                Some(text) => Some(text.to_owned()),
                None => {
                    let problem = format!("is not 1 to {most} visible ASCII characters");
                    problems.push(Field { field: name.to_owned(), problem });
                    None
                }
            }
        };
        let tenant = text(TENANT, MAX_TENANT).map(Arc::from).unwrap_or_default();
        let routing_key = text(ROUTING_KEY, MAX_ROUTING_KEY);
        let priority = match metadata.get(PRIORITY).map(|value| value.as_bytes()) {
            None | Some(b"interactive") => Priority::Interactive,
            Some(b"batch") => Priority::Batch,
            Some(_) => {
                let problem = "is neither `interactive` nor `batch`".to_owned();
                problems.push(Field { field: PRIORITY.to_owned(), problem });
                Priority::Interactive
            }
        };
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }
        Ok(Self { admission: Admission { deadline, tenant, priority }, routing_key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&'static str, &str)]) -> Result<Call> {
        let mut request = Request::new(());
        for (name, value) in pairs {
            request.metadata_mut().insert(*name, value.parse().unwrap());
        }
        Call::of(&request)
    }

    #[test]
    fn metadata_says_whose_how_urgent_and_by_which_key() {
        let silent = read(&[]).unwrap();
        assert_eq!((&*silent.admission.tenant, silent.admission.priority), ("", Priority::Interactive));
        assert_eq!(silent.routing_key, None);
        let call = read(&[(TENANT, "acme"), (PRIORITY, "batch"), (ROUTING_KEY, "customer-7")]).unwrap();
        assert_eq!((&*call.admission.tenant, call.admission.priority), ("acme", Priority::Batch));
        assert_eq!(call.routing_key.as_deref(), Some("customer-7"));
    }

    #[test]
    fn what_is_wrong_is_named_all_at_once() {
        let long = "x".repeat(300);
        let refused = read(&[(TENANT, "a b"), (PRIORITY, "shadow"), (ROUTING_KEY, &long)]).unwrap_err();
        let Error::Invalid(fields) = refused else { panic!("{refused}") };
        let named: Vec<_> = fields.iter().map(|field| field.field.as_str()).collect();
        assert_eq!(named, [TENANT, ROUTING_KEY, PRIORITY]);
    }
}
