CREATE TABLE decisions (
    decision_id   TEXT    NOT NULL PRIMARY KEY,
    request_id    TEXT    NOT NULL UNIQUE,
    time_us       INTEGER NOT NULL,
    model         TEXT    NOT NULL,
    version       INTEGER NOT NULL,
    alias         TEXT    NOT NULL,
    digest        TEXT    NOT NULL,
    features      TEXT    NOT NULL,
    features_hash TEXT    NOT NULL,
    score         REAL    NOT NULL,
    margin        REAL    NOT NULL,
    outcome       TEXT    NOT NULL,
    reasons       TEXT    NOT NULL,
    policy        TEXT    NOT NULL,
    trace_id      TEXT    NOT NULL
) STRICT;

CREATE INDEX decisions_by_model ON decisions (model, decision_id);
