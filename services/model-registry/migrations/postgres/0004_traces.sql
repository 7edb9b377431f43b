-- What programs that are watched leave behind: traces, their spans, and what people and judges think of them.
-- Times are milliseconds since 1970-01-01 UTC, those of spans nanoseconds.

CREATE TABLE traces (
    id                TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    experiment        BIGINT NOT NULL REFERENCES experiments (id),
    request_time      BIGINT NOT NULL,
    duration          BIGINT,
    state             TEXT   NOT NULL,
    client_request_id TEXT COLLATE "C",
    request_preview   TEXT,
    response_preview  TEXT,
    -- Bytes of the spans that were taken in for it.
    span_bytes        BIGINT NOT NULL DEFAULT 0
);
-- The order in which a search pages by default.
CREATE INDEX traces_by_time ON traces (experiment, request_time DESC, id);

CREATE TABLE trace_tags (
    trace TEXT COLLATE "C" NOT NULL REFERENCES traces (id) ON DELETE CASCADE,
    key   TEXT COLLATE "C" NOT NULL,
    value TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (trace, key)
);

CREATE TABLE trace_metadata (
    trace TEXT COLLATE "C" NOT NULL REFERENCES traces (id) ON DELETE CASCADE,
    key   TEXT COLLATE "C" NOT NULL,
    value TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (trace, key)
);

-- Which traces belong to which runs. A link may be there before its trace, whose exporter takes its time.
CREATE TABLE trace_runs (
    run   TEXT COLLATE "C" NOT NULL REFERENCES runs (id),
    trace TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (run, trace)
);
CREATE INDEX trace_runs_by_trace ON trace_runs (trace);

-- The content is a JSON object: attributes, events and what else no search compares.
CREATE TABLE spans (
    trace     TEXT COLLATE "C" NOT NULL REFERENCES traces (id) ON DELETE CASCADE,
    id        TEXT COLLATE "C" NOT NULL,
    parent    TEXT COLLATE "C",
    name      TEXT COLLATE "C" NOT NULL,
    kind      TEXT COLLATE "C" NOT NULL,
    status    TEXT   NOT NULL,
    start_ns  BIGINT NOT NULL,
    end_ns    BIGINT,
    content   TEXT   NOT NULL,
    PRIMARY KEY (trace, id)
);

-- The value is JSON; plain is the same as searches compare it: a text without its quotes.
CREATE TABLE assessments (
    trace       TEXT COLLATE "C" NOT NULL REFERENCES traces (id) ON DELETE CASCADE,
    id          TEXT COLLATE "C" NOT NULL,
    name        TEXT COLLATE "C" NOT NULL,
    kind        TEXT   NOT NULL,
    value       TEXT   NOT NULL,
    plain       TEXT COLLATE "C" NOT NULL,
    error       TEXT,
    source_type TEXT   NOT NULL,
    source_id   TEXT,
    span        TEXT,
    rationale   TEXT,
    metadata    TEXT   NOT NULL,
    overrides   TEXT COLLATE "C",
    valid       BIGINT NOT NULL,
    create_time BIGINT NOT NULL,
    update_time BIGINT NOT NULL,
    PRIMARY KEY (trace, id)
);
