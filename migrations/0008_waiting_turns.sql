-- migrate:up

-- For STORE=postgres: calls that wait for a busy session, in the order of their arrival.
CREATE TABLE turn_waits (
    session_key uuid        NOT NULL,
    token       text        NOT NULL,
    tenant      text        NOT NULL,
    place       bigint      GENERATED ALWAYS AS IDENTITY,
    looked_at   timestamptz NOT NULL,
    PRIMARY KEY (session_key, token)
);

CREATE INDEX turn_waits_by_look ON turn_waits (looked_at);

-- migrate:down
DROP TABLE turn_waits;
