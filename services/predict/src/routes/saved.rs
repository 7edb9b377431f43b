//! What was set at run time, on disk: `serving.json` in the data folder.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Route;
use crate::reference::Reference;

/// What this process was told while it ran.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Loaded by call.
    pub models: Vec<Reference>,
    /// By name.
    pub routes: Vec<Kept>,
}

/// A route as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    pub route: Route,
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub updated: OffsetDateTime,
    pub etag: String,
    /// SHA-256 of the route in the file of routes it was last taken from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured: Option<String>,
}

/// The file of routes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Configured {
    routes: Vec<Route>,
}

/// Where it is kept.
pub struct Store {
    path: PathBuf,
}

impl Kept {
    /// Makes a route that is new now, or takes the place of `old`.
    pub fn new(route: Route, old: Option<&Self>, now: OffsetDateTime) -> Self {
        let (created, configured) = match old {
            Some(old) => (old.created, old.configured.clone()),
            None => (now, None),
        };
        Self { route, created, updated: now, etag: Uuid::new_v4().simple().to_string(), configured }
    }
}

impl Saved {
    /// Takes the routes of the file at `path`, each that has changed there since it was last taken from it; what was
    /// set at run time stands otherwise.
    pub fn configure(&mut self, path: &Path, now: OffsetDateTime) -> anyhow::Result<()> {
        let json = fs::read(path).with_context(|| format!("cannot read the routes in {}", path.display()))?;
        let wrong = || format!("the routes in {} are wrong", path.display());
        let Configured { routes } = serde_json::from_slice(&json).with_context(wrong)?;
        for (index, route) in routes.iter().enumerate() {
            ensure!(
                !routes[..index].iter().any(|other| other.name == route.name),
                "{}: `{}` is there twice",
                wrong(),
                route.name
            );
        }
        for route in routes {
            let route = route.checked().map_err(|problem| match problem {
                crate::error::Error::Invalid(fields) => {
                    let told: Vec<_> =
                        fields.iter().map(|field| format!("`{}` {}", field.field, field.problem)).collect();
                    anyhow::anyhow!("{}: {}", wrong(), told.join("; "))
                }
                other => anyhow::Error::from(other).context(wrong()),
            })?;
            let hash = hex::encode(Sha256::digest(serde_json::to_vec(&route)?));
            match self.routes.iter_mut().find(|kept| kept.route.name == route.name) {
                Some(kept) if kept.configured.as_ref() == Some(&hash) => {}
                Some(kept) => *kept = Kept { configured: Some(hash), ..Kept::new(route, Some(kept), now) },
                None => self.routes.push(Kept { configured: Some(hash), ..Kept::new(route, None, now) }),
            }
        }
        Ok(())
    }
}

impl Store {
    /// Keeps it below `dir`.
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join("serving.json") }
    }

    /// Reads what was saved last.
    pub fn load(&self) -> anyhow::Result<Saved> {
        match fs::read(&self.path) {
            Ok(json) => serde_json::from_slice(&json)
                .with_context(|| format!("{} is damaged: put it right, or take it away", self.path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Saved::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", self.path.display())),
        }
    }

    /// Saves, durably: after a crash it is this or what was there before.
    pub fn save(&self, saved: &Saved) -> anyhow::Result<()> {
        let arriving = self.path.with_extension("json.new");
        let put = || -> io::Result<()> {
            let mut file = File::create(&arriving)?;
            file.write_all(&serde_json::to_vec_pretty(saved)?)?;
            file.sync_all()?;
            fs::rename(&arriving, &self.path)?;
            File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()
        };
        put().with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_there_again_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        assert_eq!(store.load().unwrap(), Saved::default());
        let route = serde_json::from_str(r#"{"name": "r", "champion": "m@champion"}"#).unwrap();
        let kept = Kept::new(route, None, OffsetDateTime::now_utc());
        let saved = Saved { models: vec!["m/2".parse().unwrap()], routes: vec![kept] };
        store.save(&saved).unwrap();
        assert_eq!(store.load().unwrap(), saved);
        fs::write(dir.path().join("serving.json"), "{").unwrap();
        assert!(format!("{:#}", store.load().unwrap_err()).contains("serving.json is damaged"));
    }

    #[test]
    fn the_file_of_routes_is_taken_where_it_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("routes.json");
        let write = |champion: &str| {
            fs::write(&path, format!(r#"{{"routes": [{{"name": "r", "champion": "{champion}"}}]}}"#)).unwrap();
        };
        let (mut saved, now) = (Saved::default(), OffsetDateTime::now_utc());
        write("m/1");
        saved.configure(&path, now).unwrap();
        // Set by call: stands until the file says something else.
        let mut by_call = saved.routes[0].route.clone();
        by_call.champion = "m/2".parse().unwrap();
        saved.routes[0] = Kept::new(by_call, Some(&saved.routes[0]), now);
        saved.configure(&path, now).unwrap();
        assert_eq!(saved.routes[0].route.champion.to_string(), "m/2");
        write("m/3");
        saved.configure(&path, now).unwrap();
        assert_eq!(saved.routes[0].route.champion.to_string(), "m/3");
        write("m");
        assert!(format!("{:#}", saved.configure(&path, now).unwrap_err()).contains("not a model reference"));
    }
}
