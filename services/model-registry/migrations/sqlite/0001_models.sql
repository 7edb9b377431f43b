-- Times are microseconds since 1970-01-01 UTC; structures are JSON. The tables are those of PostgreSQL, so that the
-- queries are the same.

-- The one row every write locks first: its number is the sequence of the newest event.
CREATE TABLE log (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    sequence BIGINT  NOT NULL
);
INSERT INTO log (id, sequence) VALUES (1, 0);

CREATE TABLE models (
    name         TEXT   PRIMARY KEY NOT NULL,
    description  TEXT   NOT NULL,
    create_time  BIGINT NOT NULL,
    update_time  BIGINT NOT NULL,
    revision     BIGINT NOT NULL
) WITHOUT ROWID;

-- The number of the next version. It outlives its model: a number never means two things.
CREATE TABLE numbers (
    model        TEXT PRIMARY KEY NOT NULL,
    next_version BIGINT NOT NULL
) WITHOUT ROWID;

CREATE TABLE versions (
    model       TEXT   NOT NULL REFERENCES models (name) ON DELETE CASCADE,
    version     BIGINT NOT NULL,
    description TEXT   NOT NULL,
    task        TEXT   NOT NULL,
    signature   TEXT,
    parameters  TEXT   NOT NULL,
    -- Null while PENDING.
    digest      TEXT,
    create_time BIGINT NOT NULL,
    update_time BIGINT NOT NULL,
    revision    BIGINT NOT NULL,
    PRIMARY KEY (model, version)
) WITHOUT ROWID;

CREATE TABLE artifacts (
    model   TEXT   NOT NULL,
    version BIGINT NOT NULL,
    path    TEXT   NOT NULL,
    size    BIGINT NOT NULL,
    sha256  TEXT   NOT NULL,
    PRIMARY KEY (model, version, path),
    FOREIGN KEY (model, version) REFERENCES versions (model, version) ON DELETE CASCADE
) WITHOUT ROWID;

CREATE TABLE aliases (
    model   TEXT   NOT NULL,
    alias   TEXT   NOT NULL,
    version BIGINT NOT NULL,
    PRIMARY KEY (model, alias),
    FOREIGN KEY (model, version) REFERENCES versions (model, version)
) WITHOUT ROWID;

CREATE TABLE tags (
    model   TEXT   NOT NULL REFERENCES models (name) ON DELETE CASCADE,
    -- 0: a tag of the model itself.
    version BIGINT NOT NULL,
    key     TEXT   NOT NULL,
    value   TEXT   NOT NULL,
    PRIMARY KEY (model, version, key)
) WITHOUT ROWID;

CREATE TABLE events (
    sequence         BIGINT PRIMARY KEY NOT NULL,
    time             BIGINT NOT NULL,
    kind             TEXT   NOT NULL,
    model            TEXT   NOT NULL,
    version          BIGINT NOT NULL,
    alias            TEXT   NOT NULL,
    previous_version BIGINT NOT NULL,
    digest           TEXT   NOT NULL
) WITHOUT ROWID;

-- What was answered to mutations that carried a request id.
CREATE TABLE requests (
    id          TEXT   PRIMARY KEY NOT NULL,
    fingerprint TEXT   NOT NULL,
    answer      TEXT   NOT NULL,
    time        BIGINT NOT NULL
) WITHOUT ROWID;
CREATE INDEX requests_by_time ON requests (time);
