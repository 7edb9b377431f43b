-- What deployments say they serve. Rows outlive the versions they name. Times are microseconds since 1970-01-01 UTC.
CREATE TABLE deployments (
    deployment  TEXT COLLATE "C" NOT NULL,
    reference   TEXT COLLATE "C" NOT NULL,
    start_time  BIGINT NOT NULL,
    model       TEXT COLLATE "C" NOT NULL,
    version     BIGINT NOT NULL,
    digest      TEXT   NOT NULL,
    seen_time   BIGINT NOT NULL,
    -- Silent beyond this, it is lost.
    expire_time BIGINT NOT NULL,
    -- Null while it serves.
    end_time    BIGINT,
    PRIMARY KEY (deployment, reference, start_time)
);
CREATE INDEX deployments_by_version ON deployments (model, version, start_time);
CREATE INDEX versions_by_run ON versions (run);
CREATE INDEX versions_by_source ON versions (source);
