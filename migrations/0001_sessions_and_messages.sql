-- migrate:up

-- A session's key is the first 16 bytes of a hash of its tenant and id (service/adapters/postgres/
-- keys.py): fixed width, known without a look-up, and what everything else is keyed and spread by.
-- Ids are UUIDv7-shaped and sort in the order in which they were accepted (service/domain/ids.py).
-- A deleted session leaves its row behind as a tombstone: cleared_through keeps what a replayed old
-- batch brings from coming back.
CREATE TABLE sessions (
    session_key      uuid    NOT NULL PRIMARY KEY,
    tenant           text    NOT NULL,
    session_id       text    NOT NULL,
    user_id          text,
    document         json,
    document_id      uuid    NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    born_id          uuid    NOT NULL,
    active_id        uuid    NOT NULL,
    last_id          uuid,
    archived_through uuid,
    cleared_through  uuid    NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    message_count    bigint  NOT NULL DEFAULT 0 CHECK (message_count >= 0),
    deleted          boolean NOT NULL DEFAULT false
) WITH (fillfactor = 80);

CREATE INDEX sessions_by_activity ON sessions (tenant, active_id DESC) WHERE NOT deleted;
CREATE INDEX sessions_by_user ON sessions (tenant, user_id, active_id DESC) WHERE NOT deleted;

-- body is the message as JSON text exactly as it was accepted, without its id.
CREATE TABLE messages (
    session_key uuid NOT NULL,
    id          uuid NOT NULL,
    tenant      text NOT NULL,
    role        text NOT NULL,
    body        json NOT NULL,
    PRIMARY KEY (session_key, id)
);

-- System and developer messages are looked up apart: no window drops them.
CREATE INDEX messages_pinned ON messages (session_key, id) WHERE role IN ('system', 'developer');

-- migrate:down
DROP TABLE messages;
DROP TABLE sessions;
