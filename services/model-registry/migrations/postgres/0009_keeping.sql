-- Where a version that came in an archive was first registered, as JSON.
CREATE TABLE imports (
    model      TEXT COLLATE "C" NOT NULL,
    version    BIGINT NOT NULL,
    provenance TEXT   NOT NULL,
    PRIMARY KEY (model, version),
    FOREIGN KEY (model, version) REFERENCES versions (model, version) ON DELETE CASCADE
);

-- Contents that an upload is keeping, or has kept and is about to refer to: not garbage until then, in microseconds.
CREATE TABLE leases (
    sha256 TEXT   PRIMARY KEY NOT NULL,
    until  BIGINT NOT NULL
);

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

CREATE FUNCTION bury() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tombstones (sha256, time) VALUES (OLD.sha256, (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT);
    RETURN NULL;
END $$;
CREATE TRIGGER artifacts_deleted AFTER DELETE ON artifacts FOR EACH ROW EXECUTE FUNCTION bury();
CREATE TRIGGER artifacts_replaced AFTER UPDATE OF sha256 ON artifacts FOR EACH ROW
WHEN (OLD.sha256 <> NEW.sha256) EXECUTE FUNCTION bury();
CREATE TRIGGER files_deleted AFTER DELETE ON files FOR EACH ROW EXECUTE FUNCTION bury();
CREATE TRIGGER files_replaced AFTER UPDATE OF sha256 ON files FOR EACH ROW
WHEN (OLD.sha256 <> NEW.sha256) EXECUTE FUNCTION bury();

-- Legal holds. They outlive what they were placed on; released ones stay on record.
CREATE TABLE holds (
    id             BIGINT PRIMARY KEY NOT NULL,
    model          TEXT COLLATE "C" NOT NULL,
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
CREATE FUNCTION refuse_if_version_is_held() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM holds WHERE model = OLD.model AND version IN (0, OLD.version) AND release_time IS NULL) THEN
        RAISE EXCEPTION 'legal hold';
    END IF;
    IF TG_OP = 'UPDATE' THEN
        RETURN NEW;
    END IF;
    RETURN OLD;
END $$;
CREATE FUNCTION refuse_if_model_is_held() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM holds WHERE model = OLD.name AND release_time IS NULL) THEN
        RAISE EXCEPTION 'legal hold';
    END IF;
    RETURN OLD;
END $$;
CREATE TRIGGER held_versions BEFORE DELETE ON versions FOR EACH ROW EXECUTE FUNCTION refuse_if_version_is_held();
CREATE TRIGGER held_artifacts BEFORE DELETE ON artifacts FOR EACH ROW EXECUTE FUNCTION refuse_if_version_is_held();
CREATE TRIGGER held_contents BEFORE UPDATE OF sha256 ON artifacts FOR EACH ROW
WHEN (OLD.sha256 <> NEW.sha256) EXECUTE FUNCTION refuse_if_version_is_held();
CREATE TRIGGER held_models BEFORE DELETE ON models FOR EACH ROW EXECUTE FUNCTION refuse_if_model_is_held();
