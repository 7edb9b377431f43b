-- Where a version that came in an archive was first registered, as JSON.
CREATE TABLE imports (
    model      TEXT   NOT NULL,
    version    BIGINT NOT NULL,
    provenance TEXT   NOT NULL,
    PRIMARY KEY (model, version),
    FOREIGN KEY (model, version) REFERENCES versions (model, version) ON DELETE CASCADE
) WITHOUT ROWID;

-- Contents that an upload is keeping, or has kept and is about to refer to: not garbage until then, in microseconds.
CREATE TABLE leases (
    sha256 TEXT   PRIMARY KEY NOT NULL,
    until  BIGINT NOT NULL
) WITHOUT ROWID;

-- What something referred to until it was deleted, and when that was. Written by the triggers below, so that no way of
-- deleting can forget it.
CREATE TABLE tombstones (
    sha256 TEXT   NOT NULL,
    time   BIGINT NOT NULL
);
CREATE INDEX tombstones_by_sha256 ON tombstones (sha256, time);
CREATE INDEX tombstones_by_time ON tombstones (time);
CREATE INDEX artifacts_by_sha256 ON artifacts (sha256);
CREATE INDEX files_by_sha256 ON files (sha256);

CREATE TRIGGER artifacts_deleted AFTER DELETE ON artifacts BEGIN
    INSERT INTO tombstones (sha256, time) VALUES (OLD.sha256, CAST(unixepoch('subsec') * 1000000 AS INTEGER));
END;
CREATE TRIGGER artifacts_replaced AFTER UPDATE OF sha256 ON artifacts WHEN OLD.sha256 <> NEW.sha256 BEGIN
    INSERT INTO tombstones (sha256, time) VALUES (OLD.sha256, CAST(unixepoch('subsec') * 1000000 AS INTEGER));
END;
CREATE TRIGGER files_deleted AFTER DELETE ON files BEGIN
    INSERT INTO tombstones (sha256, time) VALUES (OLD.sha256, CAST(unixepoch('subsec') * 1000000 AS INTEGER));
END;
CREATE TRIGGER files_replaced AFTER UPDATE OF sha256 ON files WHEN OLD.sha256 <> NEW.sha256 BEGIN
    INSERT INTO tombstones (sha256, time) VALUES (OLD.sha256, CAST(unixepoch('subsec') * 1000000 AS INTEGER));
END;

-- Legal holds. They outlive what they were placed on; released ones stay on record.
CREATE TABLE holds (
    id             BIGINT PRIMARY KEY NOT NULL,
    model          TEXT   NOT NULL,
    -- 0: the model with all its versions.
    version        BIGINT NOT NULL,
    placed_by      TEXT   NOT NULL,
    reason         TEXT   NOT NULL,
    place_time     BIGINT NOT NULL,
    released_by    TEXT   NOT NULL DEFAULT '',
    release_reason TEXT   NOT NULL DEFAULT '',
    -- Null while it stands.
    release_time   BIGINT
);
CREATE INDEX holds_by_model ON holds (model, id);

-- No statement of any part of the program, nor of a person at a prompt, deletes or replaces what is held.
CREATE TRIGGER held_versions BEFORE DELETE ON versions
WHEN EXISTS (SELECT 1 FROM holds WHERE model = OLD.model AND version IN (0, OLD.version) AND release_time IS NULL) BEGIN
    SELECT RAISE(ABORT, 'legal hold');
END;
CREATE TRIGGER held_artifacts BEFORE DELETE ON artifacts
WHEN EXISTS (SELECT 1 FROM holds WHERE model = OLD.model AND version IN (0, OLD.version) AND release_time IS NULL) BEGIN
    SELECT RAISE(ABORT, 'legal hold');
END;
CREATE TRIGGER held_contents BEFORE UPDATE OF sha256 ON artifacts
WHEN OLD.sha256 <> NEW.sha256
    AND EXISTS (SELECT 1 FROM holds WHERE model = OLD.model AND version IN (0, OLD.version) AND release_time IS NULL)
BEGIN
    SELECT RAISE(ABORT, 'legal hold');
END;
CREATE TRIGGER held_models BEFORE DELETE ON models
WHEN EXISTS (SELECT 1 FROM holds WHERE model = OLD.name AND release_time IS NULL) BEGIN
    SELECT RAISE(ABORT, 'legal hold');
END;
