-- migrate:up

-- For STORE=postgres: what Redis keeps elsewhere. A row here is the lease on a session's turn.
CREATE TABLE turn_leases (
    session_key uuid        NOT NULL PRIMARY KEY,
    tenant      text        NOT NULL,
    token       text        NOT NULL,
    turn_id     text        NOT NULL,
    expires_at  timestamptz NOT NULL
);

-- Calls that were promised to happen once. ids are those of appended messages, in order; a turn has
-- its user message there, and its answer in answer_id.
CREATE TABLE calls (
    session_key uuid        NOT NULL,
    operation   text        NOT NULL,
    key         text        NOT NULL,
    tenant      text        NOT NULL,
    fingerprint text        NOT NULL,
    state       text        NOT NULL CHECK (state IN ('running', 'done', 'failed')),
    token       text        NOT NULL DEFAULT '',
    ids         uuid[]      NOT NULL,
    answer_id   uuid,
    result      bytea       NOT NULL DEFAULT '',
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (session_key, operation, key)
);

CREATE INDEX calls_by_expiry ON calls (expires_at);

-- migrate:down
DROP TABLE calls;
DROP TABLE turn_leases;
