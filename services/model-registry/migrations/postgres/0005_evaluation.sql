-- What answers of models are judged by. Times are milliseconds since 1970-01-01 UTC.

CREATE TABLE evaluation_datasets (
    id          TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    name        TEXT COLLATE "C" NOT NULL,
    digest      TEXT   NOT NULL,
    schema      TEXT,
    records     BIGINT NOT NULL DEFAULT 0,
    create_time BIGINT NOT NULL,
    update_time BIGINT NOT NULL,
    created_by  TEXT,
    updated_by  TEXT
);
CREATE INDEX evaluation_datasets_by_time ON evaluation_datasets (create_time, id);

CREATE TABLE evaluation_dataset_tags (
    dataset TEXT COLLATE "C" NOT NULL REFERENCES evaluation_datasets (id),
    key     TEXT COLLATE "C" NOT NULL,
    value   TEXT NOT NULL,
    PRIMARY KEY (dataset, key)
);

CREATE TABLE evaluation_dataset_experiments (
    dataset    TEXT COLLATE "C" NOT NULL REFERENCES evaluation_datasets (id),
    experiment BIGINT NOT NULL REFERENCES experiments (id),
    PRIMARY KEY (dataset, experiment)
);
CREATE INDEX evaluation_datasets_by_experiment ON evaluation_dataset_experiments (experiment, dataset);

-- Inputs, outputs, expectations, tags and the source are JSON.
CREATE TABLE evaluation_records (
    dataset      TEXT COLLATE "C" NOT NULL REFERENCES evaluation_datasets (id),
    input_hash   TEXT COLLATE "C" NOT NULL,
    id           TEXT COLLATE "C" NOT NULL,
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
);
CREATE UNIQUE INDEX evaluation_records_by_time ON evaluation_records (dataset, create_time, id);

CREATE TABLE scorers (
    id           TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    experiment   BIGINT NOT NULL REFERENCES experiments (id),
    name         TEXT COLLATE "C" NOT NULL,
    last_version BIGINT NOT NULL,
    UNIQUE (experiment, name)
);

CREATE TABLE scorer_versions (
    scorer      TEXT COLLATE "C" NOT NULL REFERENCES scorers (id),
    version     BIGINT NOT NULL,
    serialized  TEXT   NOT NULL,
    create_time BIGINT NOT NULL,
    PRIMARY KEY (scorer, version)
);
