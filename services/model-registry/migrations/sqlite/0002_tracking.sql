-- What training leaves behind. Times are milliseconds since 1970-01-01 UTC, as MLflow's clients send them.

CREATE TABLE experiments (
    id                BIGINT PRIMARY KEY NOT NULL,
    name              TEXT   NOT NULL UNIQUE,
    artifact_location TEXT   NOT NULL,
    deleted           BIGINT NOT NULL DEFAULT 0,
    create_time       BIGINT NOT NULL,
    update_time       BIGINT NOT NULL
) WITHOUT ROWID;

CREATE TABLE experiment_tags (
    experiment BIGINT NOT NULL REFERENCES experiments (id),
    key        TEXT   NOT NULL,
    value      TEXT   NOT NULL,
    PRIMARY KEY (experiment, key)
) WITHOUT ROWID;

CREATE TABLE runs (
    id           TEXT   PRIMARY KEY NOT NULL,
    experiment   BIGINT NOT NULL REFERENCES experiments (id),
    name         TEXT   NOT NULL,
    user_id      TEXT   NOT NULL,
    status       TEXT   NOT NULL,
    start_time   BIGINT NOT NULL,
    end_time     BIGINT,
    artifact_uri TEXT   NOT NULL,
    deleted      BIGINT NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX runs_by_start ON runs (experiment, start_time, id);

CREATE TABLE params (
    run   TEXT NOT NULL REFERENCES runs (id),
    key   TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (run, key)
) WITHOUT ROWID;

CREATE TABLE run_tags (
    run   TEXT NOT NULL REFERENCES runs (id),
    key   TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (run, key)
) WITHOUT ROWID;

-- Every value that was logged. NaN is 0 with nan = 1; infinities are the largest finite numbers.
CREATE TABLE metrics (
    run       TEXT             NOT NULL REFERENCES runs (id),
    key       TEXT             NOT NULL,
    timestamp BIGINT           NOT NULL,
    step      BIGINT           NOT NULL,
    value     DOUBLE PRECISION NOT NULL,
    nan       BIGINT           NOT NULL,
    PRIMARY KEY (run, key, timestamp, step, value, nan)
) WITHOUT ROWID;

-- The value of each metric with the highest step, then timestamp, then value.
CREATE TABLE latest_metrics (
    run       TEXT             NOT NULL REFERENCES runs (id),
    key       TEXT             NOT NULL,
    timestamp BIGINT           NOT NULL,
    step      BIGINT           NOT NULL,
    value     DOUBLE PRECISION NOT NULL,
    nan       BIGINT           NOT NULL,
    PRIMARY KEY (run, key)
) WITHOUT ROWID;
CREATE INDEX latest_metrics_by_value ON latest_metrics (key, value);

CREATE TABLE datasets (
    experiment  BIGINT NOT NULL REFERENCES experiments (id),
    name        TEXT   NOT NULL,
    digest      TEXT   NOT NULL,
    source_type TEXT   NOT NULL,
    source      TEXT   NOT NULL,
    schema      TEXT,
    profile     TEXT,
    PRIMARY KEY (experiment, name, digest)
) WITHOUT ROWID;

-- Tags are a JSON object: they belong to the use of a dataset by a run. The context is one of them.
CREATE TABLE run_datasets (
    run        TEXT   NOT NULL REFERENCES runs (id),
    experiment BIGINT NOT NULL,
    name       TEXT   NOT NULL,
    digest     TEXT   NOT NULL,
    context    TEXT,
    tags       TEXT   NOT NULL,
    PRIMARY KEY (run, name, digest),
    FOREIGN KEY (experiment, name, digest) REFERENCES datasets (experiment, name, digest)
) WITHOUT ROWID;

CREATE TABLE logged_models (
    id                TEXT   PRIMARY KEY NOT NULL,
    experiment        BIGINT NOT NULL REFERENCES experiments (id),
    name              TEXT   NOT NULL,
    artifact_location TEXT   NOT NULL,
    status            TEXT   NOT NULL,
    model_type        TEXT   NOT NULL,
    source_run        TEXT   NOT NULL,
    deleted           BIGINT NOT NULL DEFAULT 0,
    create_time       BIGINT NOT NULL,
    update_time       BIGINT NOT NULL
) WITHOUT ROWID;
CREATE INDEX logged_models_by_time ON logged_models (experiment, create_time, id);

CREATE TABLE logged_model_params (
    model TEXT NOT NULL REFERENCES logged_models (id),
    key   TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (model, key)
) WITHOUT ROWID;

CREATE TABLE logged_model_tags (
    model TEXT NOT NULL REFERENCES logged_models (id),
    key   TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (model, key)
) WITHOUT ROWID;

CREATE TABLE logged_model_metrics (
    model          TEXT             NOT NULL REFERENCES logged_models (id),
    run            TEXT             NOT NULL,
    key            TEXT             NOT NULL,
    timestamp      BIGINT           NOT NULL,
    step           BIGINT           NOT NULL,
    value          DOUBLE PRECISION NOT NULL,
    nan            BIGINT           NOT NULL,
    dataset_name   TEXT             NOT NULL,
    dataset_digest TEXT             NOT NULL,
    PRIMARY KEY (model, run, key, timestamp, step)
) WITHOUT ROWID;

-- Which logged models a run read (direction = 'input') or made ('output').
CREATE TABLE run_models (
    run       TEXT   NOT NULL REFERENCES runs (id),
    direction TEXT   NOT NULL,
    model     TEXT   NOT NULL,
    step      BIGINT NOT NULL,
    PRIMARY KEY (run, direction, model)
) WITHOUT ROWID;

-- The files clients have put, by path; their bytes are in the artifact store by their SHA-256.
CREATE TABLE files (
    path   TEXT   PRIMARY KEY NOT NULL,
    size   BIGINT NOT NULL,
    sha256 TEXT   NOT NULL
) WITHOUT ROWID;

-- Where a version comes from, for those registered through MLflow's API; the stage is for its older clients.
ALTER TABLE versions ADD COLUMN source TEXT NOT NULL DEFAULT '';
ALTER TABLE versions ADD COLUMN run TEXT NOT NULL DEFAULT '';
ALTER TABLE versions ADD COLUMN run_link TEXT NOT NULL DEFAULT '';
ALTER TABLE versions ADD COLUMN logged_model TEXT NOT NULL DEFAULT '';
ALTER TABLE versions ADD COLUMN stage TEXT NOT NULL DEFAULT 'None';
