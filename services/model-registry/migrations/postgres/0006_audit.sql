-- Who changed what, chained by hashes: `src/audit.rs` says over what. Unlike events, which are there to be relayed, these
-- rows are kept for ever. `log` holds the end of the chain, so that a chain cut short is found out.
ALTER TABLE log ADD COLUMN audit_sequence BIGINT NOT NULL DEFAULT 0;
ALTER TABLE log ADD COLUMN audit_time BIGINT NOT NULL DEFAULT 0;
ALTER TABLE log ADD COLUMN audit_hash TEXT NOT NULL DEFAULT '';

CREATE TABLE audit (
    sequence BIGINT PRIMARY KEY NOT NULL,
    time     BIGINT NOT NULL,
    caller   TEXT   NOT NULL,
    action   TEXT   NOT NULL,
    resource TEXT COLLATE "C" NOT NULL,
    -- JSON; null where there was nothing, or is nothing any more.
    before   TEXT,
    after    TEXT,
    hash     TEXT   NOT NULL
);
CREATE INDEX audit_by_resource ON audit (resource, sequence);

-- Who made a version; empty where nobody said.
ALTER TABLE versions ADD COLUMN author TEXT NOT NULL DEFAULT '';

-- What must be so before an alias moves. A rule is there before its alias, and after it.
CREATE TABLE alias_rules (
    model           TEXT COLLATE "C" NOT NULL REFERENCES models (name) ON DELETE CASCADE,
    alias           TEXT COLLATE "C" NOT NULL,
    -- A JSON list of names.
    required_checks TEXT   NOT NULL,
    approvals       BIGINT NOT NULL,
    etag_required   BIGINT NOT NULL,
    PRIMARY KEY (model, alias)
);

-- What was found about a version, the newest result of each check.
CREATE TABLE checks (
    model   TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    name    TEXT COLLATE "C" NOT NULL,
    passed  BIGINT NOT NULL,
    summary TEXT   NOT NULL,
    caller  TEXT   NOT NULL,
    time    BIGINT NOT NULL,
    PRIMARY KEY (model, version, name),
    FOREIGN KEY (model, version) REFERENCES versions (model, version) ON DELETE CASCADE
);

-- Who agreed that an alias may point at a version.
CREATE TABLE approvals (
    model    TEXT COLLATE "C" NOT NULL,
    version  BIGINT NOT NULL,
    alias    TEXT COLLATE "C" NOT NULL,
    approver TEXT COLLATE "C" NOT NULL,
    comment  TEXT   NOT NULL,
    time     BIGINT NOT NULL,
    PRIMARY KEY (model, version, alias, approver),
    FOREIGN KEY (model, version) REFERENCES versions (model, version) ON DELETE CASCADE
);
