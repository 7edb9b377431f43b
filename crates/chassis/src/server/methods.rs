//! What the descriptors say about each method: label values with a bound on their number, and which way it streams.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context;
use prost::Message;
use prost_types::FileDescriptorSet;

use crate::metrics::CallMeters;

/// One method of a contract.
#[derive(Clone, Debug)]
pub(crate) struct Method {
    /// `package.Service/Method`: the span's name.
    pub(crate) name: Arc<str>,
    pub(crate) service: Arc<str>,
    pub(crate) method: Arc<str>,
    pub(crate) streams_in: bool,
    pub(crate) streams_out: bool,
    /// Health and reflection answer even when the concurrency limit is reached.
    pub(crate) unlimited: bool,
    pub(crate) meters: Arc<CallMeters>,
}

/// Methods by path; every path outside the contracts is the one called `unknown`, whoever invents it.
#[derive(Debug)]
pub(crate) struct Methods {
    by_path: HashMap<String, Method>,
    unknown: Method,
}

impl Methods {
    pub(crate) fn of(sets: &[&[u8]]) -> anyhow::Result<Self> {
        let mut by_path = HashMap::new();
        for set in sets {
            let set = FileDescriptorSet::decode(*set).context("the descriptors are no FileDescriptorSet")?;
            for file in &set.file {
                for service in &file.service {
                    let service_name: Arc<str> = match file.package() {
                        "" => service.name().into(),
                        package => format!("{package}.{}", service.name()).into(),
                    };
                    for method in &service.method {
                        let name = format!("{service_name}/{}", method.name());
                        let method_name: Arc<str> = method.name().into();
                        let meters = CallMeters::new(Arc::clone(&service_name), Arc::clone(&method_name));
                        by_path.insert(
                            format!("/{name}"),
                            Method {
                                name: name.into(),
                                service: Arc::clone(&service_name),
                                method: method_name,
                                streams_in: method.client_streaming(),
                                streams_out: method.server_streaming(),
                                unlimited: service_name.starts_with("grpc."),
                                meters: Arc::new(meters),
                            },
                        );
                    }
                }
            }
        }
        let unknown: Arc<str> = "unknown".into();
        let unknown = Method {
            name: Arc::clone(&unknown),
            service: Arc::clone(&unknown),
            meters: Arc::new(CallMeters::new(Arc::clone(&unknown), Arc::clone(&unknown))),
            method: unknown,
            streams_in: false,
            streams_out: false,
            unlimited: false,
        };
        Ok(Self { by_path, unknown })
    }

    pub(crate) fn find(&self, path: &str) -> &Method {
        self.by_path.get(path).unwrap_or(&self.unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contracts_say_which_way_a_method_streams() {
        let methods = Methods::of(&[verdict_api::FILE_DESCRIPTOR_SET]).unwrap();
        let upload = methods.find("/verdict.registry.v1.ModelRegistryService/UploadArtifact");
        assert!(upload.streams_in && !upload.streams_out);
        let watch = methods.find("/verdict.registry.v1.ModelRegistryService/WatchModels");
        assert!(!watch.streams_in && watch.streams_out);
        assert_eq!(&*watch.name, "verdict.registry.v1.ModelRegistryService/WatchModels");
    }

    #[test]
    fn invented_paths_share_one_label() {
        let methods = Methods::of(&[verdict_api::FILE_DESCRIPTOR_SET]).unwrap();
        assert_eq!(&*methods.find("/a/1").service, "unknown");
        assert_eq!(&*methods.find("/a/2").method, "unknown");
    }
}
