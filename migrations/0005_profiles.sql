-- migrate:up

-- version changes with every write; an ETag names it. document is the JSON text of the topics.
CREATE TABLE profiles (
    tenant     text        NOT NULL,
    user_id    text        NOT NULL,
    version    uuid        NOT NULL,
    document   json        NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (tenant, user_id)
);

-- migrate:down
DROP TABLE profiles;
