-- What answers of models are judged by. Times are milliseconds since 1970-01-01 UTC.

CREATE TABLE evaluation_datasets (
    id          TEXT   PRIMARY KEY NOT NULL,
    name        TEXT   NOT NULL,
    digest      TEXT   NOT NULL,
    schema      TEXT,
    records     BIGINT NOT NULL DEFAULT 0,
    create_time BIGINT NOT NULL,
    update_time BIGINT NOT NULL,
    created_by  TEXT,
    updated_by  TEXT
) WITHOUT ROWID;
CREATE INDEX evaluation_datasets_by_time ON evaluation_datasets (create_time, id);

CREATE TABLE evaluation_dataset_tags (
    dataset TEXT NOT NULL REFERENCES evaluation_datasets (id),
    key     TEXT NOT NULL,
    value   TEXT NOT NULL,
    PRIMARY KEY (dataset, key)
) WITHOUT ROWID;

CREATE TABLE evaluation_dataset_experiments (
    dataset    TEXT   NOT NULL REFERENCES evaluation_datasets (id),
    experiment BIGINT NOT NULL REFERENCES experiments (id),
    PRIMARY KEY (dataset, experiment)
) WITHOUT ROWID;
CREATE INDEX evaluation_datasets_by_experiment ON evaluation_dataset_experiments (experiment, dataset);

-- Inputs, outputs, expectations, tags and the source are JSON.
CREATE TABLE evaluation_records (
    dataset      TEXT   NOT NULL REFERENCES evaluation_datasets (id),
    input_hash   TEXT   NOT NULL,
    id           TEXT   NOT NULL,
    inputs       TEXT   NOT NULL,
    outputs      TEXT,
    expectations TEXT,
    tags         TEXT   NOT NULL,
    source       TEXT,
    create_time  BIGINT NOT NULL,
    update_time  BIGINT NOT NULL,
    created_by   TEXT,
    updated_by   TEXT,
    PRIMARY KEY (dataset, input_hash)
) WITHOUT ROWID;
CREATE UNIQUE INDEX evaluation_records_by_time ON evaluation_records (dataset, create_time, id);

CREATE TABLE scorers (
    id           TEXT   PRIMARY KEY NOT NULL,
    experiment   BIGINT NOT NULL REFERENCES experiments (id),
    name         TEXT   NOT NULL,
    last_version BIGINT NOT NULL,
    UNIQUE (experiment, name)
) WITHOUT ROWID;

CREATE TABLE scorer_versions (
    scorer      TEXT   NOT NULL REFERENCES scorers (id),
    version     BIGINT NOT NULL,
    serialized  TEXT   NOT NULL,
    create_time BIGINT NOT NULL,
    PRIMARY KEY (scorer, version)
) WITHOUT ROWID;
