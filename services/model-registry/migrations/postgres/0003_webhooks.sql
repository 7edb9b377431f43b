-- Who is told of changes, and what they were told. Times are microseconds since 1970-01-01 UTC.

CREATE TABLE webhooks (
    id          TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    name        TEXT   NOT NULL,
    description TEXT   NOT NULL,
    url         TEXT   NOT NULL,
    -- As `seal` writes it; null for none.
    secret      TEXT,
    status      TEXT   NOT NULL,
    create_time BIGINT NOT NULL,
    update_time BIGINT NOT NULL,
    -- When the oldest waiting delivery is to be tried; null while none waits.
    due         BIGINT,
    -- Until when one replica alone delivers to it.
    lease_until BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE webhook_topics (
    webhook TEXT COLLATE "C" NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    topic   TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (webhook, topic)
);
CREATE INDEX webhook_topics_by_topic ON webhook_topics (topic, webhook);

-- The outbox: one row for each event and webhook, written with the event; later the record of what became of it.
CREATE TABLE webhook_deliveries (
    webhook         TEXT COLLATE "C" NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    -- Of the event in the log: deliveries to one webhook go out in this order.
    sequence        BIGINT NOT NULL,
    id              TEXT COLLATE "C" NOT NULL,
    topic           TEXT COLLATE "C" NOT NULL,
    -- What is sent; empty once that is over.
    body            TEXT   NOT NULL,
    state           TEXT   NOT NULL,
    attempts        BIGINT NOT NULL DEFAULT 0,
    due             BIGINT NOT NULL,
    response_status BIGINT NOT NULL DEFAULT 0,
    error           TEXT   NOT NULL DEFAULT '',
    create_time     BIGINT NOT NULL,
    update_time     BIGINT NOT NULL,
    PRIMARY KEY (webhook, sequence)
);
CREATE INDEX webhook_deliveries_pending ON webhook_deliveries (webhook, sequence) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_by_time ON webhook_deliveries (create_time);
