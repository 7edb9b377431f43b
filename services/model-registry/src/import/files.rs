//! Files: where they are at the source, how they are listed and read there, and what of them is here.

use std::collections::BTreeMap;

use futures::stream::{self, StreamExt, TryStreamExt};
use url::Url;

use super::wire::FileList;
use super::{Failure, Found, Import};
use crate::artifacts::Body;
use crate::artifacts::incoming::{self, Announced};
use crate::error::Error;
use crate::model::Artifact;
use crate::names::ArtifactPath;
use crate::tracking::PROXY;

/// Most files of one run, logged model or version.
const MAX_FILES: usize = 200_000;
/// How often a file is read from its beginning before it is left out.
const TRIES: usize = 3;

/// A directory at the source that its server lists and reads for others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Below the root of its artifact proxy.
    Proxy(String),
    /// Below a run's files, wherever those are.
    Run { id: String, dir: String },
    /// Below a logged model's files.
    LoggedModel { id: String, dir: String },
}

/// A file at the source.
pub(super) struct Listed {
    /// From the place that was listed.
    pub(super) path: String,
    /// Bytes, where the server says so.
    pub(super) size: Option<u64>,
}

fn joined(dir: &str, path: &str) -> String {
    match (dir.trim_matches('/'), path) {
        ("", path) => path.to_owned(),
        (dir, "") => dir.to_owned(),
        (dir, path) => format!("{dir}/{path}"),
    }
}

/// What of `uri` stands below `root`.
pub(super) fn below<'a>(uri: &'a str, root: &str) -> Option<&'a str> {
    let rest = uri.strip_prefix(root.trim_end_matches('/'))?;
    (!root.is_empty() && (rest.is_empty() || rest.starts_with('/'))).then(|| rest.trim_matches('/'))
}

impl Place {
    /// The directory of the server's own proxy that `uri` names, if it names one.
    pub(super) fn proxied(uri: &str, server: &Url) -> Option<Self> {
        let path = if let Some(rest) = uri.strip_prefix(PROXY) {
            match rest.strip_prefix("//") {
                None => rest.to_owned(),
                Some(rest) => {
                    let (authority, path) = rest.split_once('/')?;
                    let host = authority.split(':').next().unwrap_or_default();
                    if !host.is_empty() && Some(host) != server.host_str() {
                        return None;
                    }
                    path.to_owned()
                }
            }
        } else {
            let root = format!("{}/api/2.0/mlflow-artifacts/artifacts", server.as_str().trim_end_matches('/'));
            below(uri, &root)?.to_owned()
        };
        Some(Self::Proxy(path.trim_matches('/').to_owned()))
    }
}

impl Import<'_> {
    /// Where the files of a run are that says they are at `uri`.
    pub(super) fn place_of_run(&self, id: &str, uri: &str) -> Place {
        let run = || Place::Run { id: id.to_owned(), dir: String::new() };
        Place::proxied(uri, &self.config.from).unwrap_or_else(run)
    }

    /// Where the files of a logged model are that says they are at `uri`.
    pub(super) fn place_of_logged_model(&self, id: &str, uri: &str) -> Place {
        let model = || Place::LoggedModel { id: id.to_owned(), dir: String::new() };
        Place::proxied(uri, &self.config.from).unwrap_or_else(model)
    }

    /// Lists all files of a place, those of its directories too.
    pub(super) async fn list(&self, place: &Place) -> Found<Vec<Listed>> {
        let mut found = Vec::new();
        let mut dirs = vec![String::new()];
        let mut seen = 0;
        while let Some(dir) = dirs.pop() {
            seen += 1;
            for file in self.list_one(place, &dir).await?.files {
                // Some list names, some paths from the run's root: the last part is the name in both.
                let name = file.path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
                if name.is_empty() {
                    return Err(Failure::item(format!("`{dir}` lists a file without a name")));
                }
                let path = joined(&dir, name);
                ArtifactPath::parse("path", &path).map_err(|error| Failure::item(format!("`{path}`: {error}")))?;
                if file.is_dir {
                    dirs.push(path);
                } else {
                    found.push(Listed { path, size: file.file_size });
                }
            }
            if found.len() + dirs.len() + seen > MAX_FILES {
                return Err(Failure::item(format!("it has more than {MAX_FILES} files")));
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    async fn list_one(&self, place: &Place, dir: &str) -> Found<FileList> {
        match place {
            Place::Proxy(root) => {
                let path = joined(root, dir);
                let query = [("path", path.as_str())];
                let query = if path.is_empty() { &[][..] } else { &query[..] };
                self.source.ask(&["api", "2.0", "mlflow-artifacts", "artifacts"], query, None).await
            }
            Place::Run { id, dir: root } => {
                let path = joined(root, dir);
                let query = [("run_id", id.as_str()), ("path", path.as_str())];
                let query = if path.is_empty() { &query[..1] } else { &query[..] };
                self.source.get(&["artifacts", "list"], query).await
            }
            Place::LoggedModel { id, dir: root } => {
                let path = joined(root, dir);
                let query = [("artifact_directory_path", path.as_str())];
                let query = if path.is_empty() { &[][..] } else { &query[..] };
                self.source.get(&["logged-models", id, "artifacts", "directories"], query).await
            }
        }
    }

    async fn open(&self, place: &Place, path: &str) -> Found<Body<'static>> {
        match place {
            Place::Proxy(root) => {
                let path = joined(root, path);
                let route = ["api", "2.0", "mlflow-artifacts", "artifacts"].into_iter().chain(path.split('/'));
                self.source.open(&route.collect::<Vec<_>>(), &[]).await
            }
            Place::Run { id, dir } => {
                let path = joined(dir, path);
                self.source.open(&["get-artifact"], &[("run_id", id), ("path", &path)]).await
            }
            Place::LoggedModel { id, dir } => {
                let path = joined(dir, path);
                let route = ["ajax-api", "2.0", "mlflow", "logged-models", id, "artifacts", "files"];
                self.source.open(&route, &[("artifact_file_path", &path)]).await
            }
        }
    }

    /// Copies the files of a place below `dir` of this registry's files. What is there with the same size is passed over:
    /// it came with an import before this one.
    pub(super) async fn copy_files(&self, of: &str, place: &Place, dir: &str) -> Found<()> {
        let listed = self.list(place).await?;
        let here: BTreeMap<String, u64> =
            self.store.files_below(dir).await?.into_iter().map(|file| (file.path.to_string(), file.size)).collect();
        let here = &here;
        let copying = stream::iter(listed).map(Ok).try_for_each_concurrent(self.at_once(), |file| async move {
            let name = format!("{} of {of}", file.path);
            self.settle("file", &name, self.copy_file(place, dir, &file, here)).await
        });
        copying.await.map_err(Failure::Fatal)
    }

    async fn copy_file(&self, place: &Place, dir: &str, file: &Listed, here: &BTreeMap<String, u64>) -> Found<()> {
        let path = ArtifactPath::parse("path", &format!("{dir}/{}", file.path))?;
        match here.get(path.as_str()) {
            Some(size) if file.size.is_none_or(|there| there == *size) => {
                self.here_already(|counts| {
                    counts.files += 1;
                    counts.bytes += size;
                });
                return Ok(());
            }
            Some(_) => return Err(Failure::item("a file of another size is here already; it stays as it is here")),
            None => {}
        }
        if !self.config.dry_run {
            let file = self.fetch(place, file, path).await?;
            self.store.put_file(&file).await?;
            self.count_file(file.size);
        } else {
            self.count_file(file.size.unwrap_or_default());
        }
        Ok(())
    }

    pub(super) fn count_file(&self, size: u64) {
        self.copied(|counts| {
            counts.files += 1;
            counts.bytes += size;
        });
    }

    /// Reads a file and keeps its bytes, under whatever path it will be noted.
    pub(super) async fn fetch(&self, place: &Place, file: &Listed, path: ArtifactPath) -> Found<Artifact> {
        let _permit = self.downloads.acquire().await.map_err(|error| Failure::Fatal(error.into()))?;
        for tried in 1.. {
            let body = self.open(place, &file.path).await?;
            match incoming::take(self.artifacts.as_ref(), &self.spool, path.clone(), &Announced::default(), body).await
            {
                Ok(kept) if file.size.is_none_or(|size| size == kept.size) => return Ok(kept),
                Ok(kept) if tried >= TRIES => {
                    let listed = file.size.unwrap_or_default();
                    return Err(Failure::item(format!("{} bytes came where {listed} were listed", kept.size)));
                }
                Err(Error::BrokenOff(_)) | Ok(_) if tried < TRIES => {}
                Err(error) => return Err(error.into()),
                Ok(_) => {}
            }
        }
        Err(Failure::item("it could not be read"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_servers_own_proxy_is_taken_for_it() {
        let server = Url::parse("http://mlflow.internal:5000/ml").unwrap();
        let proxied = |uri: &str| Place::proxied(uri, &server);
        let place = |path: &str| Some(Place::Proxy(path.to_owned()));
        assert_eq!(proxied("mlflow-artifacts:/3/abc/artifacts"), place("3/abc/artifacts"));
        assert_eq!(proxied("mlflow-artifacts:///3/abc"), place("3/abc"));
        assert_eq!(proxied("mlflow-artifacts://mlflow.internal:5000/3/abc"), place("3/abc"));
        assert_eq!(proxied("mlflow-artifacts://elsewhere:5000/3/abc"), None);
        let root = "http://mlflow.internal:5000/ml/api/2.0/mlflow-artifacts/artifacts";
        assert_eq!(proxied(&format!("{root}/3/abc")), place("3/abc"));
        assert_eq!(proxied(&format!("{root}-of-others/3/abc")), None);
        assert_eq!(proxied("s3://bucket/3/abc"), None);
    }

    #[test]
    fn a_place_is_below_another_only_at_a_border() {
        assert_eq!(below("s3://b/r/artifacts/model", "s3://b/r/artifacts"), Some("model"));
        assert_eq!(below("s3://b/r/artifacts", "s3://b/r/artifacts/"), Some(""));
        assert_eq!(below("s3://b/r/artifacts2/model", "s3://b/r/artifacts"), None);
        assert_eq!(below("/anything", ""), None);
    }
}
