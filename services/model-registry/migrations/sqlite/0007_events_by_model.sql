-- What has happened to a model or a version is asked for by name: an import brings back nothing that was deleted here.
CREATE INDEX events_by_model ON events (model, version);
