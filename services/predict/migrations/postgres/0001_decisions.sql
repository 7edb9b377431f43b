CREATE TABLE decisions (
    decision_id   TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    request_id    TEXT             NOT NULL UNIQUE,
    time_us       BIGINT           NOT NULL,
    model         TEXT             NOT NULL,
    version       BIGINT           NOT NULL,
    alias         TEXT             NOT NULL,
    digest        TEXT             NOT NULL,
    features      TEXT             NOT NULL,
    features_hash TEXT             NOT NULL,
    score         DOUBLE PRECISION NOT NULL,
    margin        DOUBLE PRECISION NOT NULL,
    outcome       TEXT             NOT NULL,
    reasons       TEXT             NOT NULL,
    policy        TEXT             NOT NULL,
    trace_id      TEXT             NOT NULL
);

CREATE INDEX decisions_by_model ON decisions (model, decision_id);
