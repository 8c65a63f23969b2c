-- migrate:up

-- What was said and what it cost, by day (UTC) of acceptance, user and model; '' stands for none.
-- Grown in the transaction that archives the messages, by the rows really inserted; a clear or a
-- deletion does not take back what was used. slot spreads what many sessions without a user write.
CREATE TABLE daily_counts (
    tenant        text     NOT NULL,
    day           date     NOT NULL,
    user_id       text     NOT NULL,
    model         text     NOT NULL,
    slot          smallint NOT NULL,
    messages      bigint   NOT NULL DEFAULT 0,
    turns         bigint   NOT NULL DEFAULT 0,
    input_tokens  bigint   NOT NULL DEFAULT 0,
    output_tokens bigint   NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, day, user_id, model, slot)
);

-- A session is active on a day when something was said in it; once per user and model.
CREATE TABLE active_sessions (
    tenant      text NOT NULL,
    day         date NOT NULL,
    user_id     text NOT NULL,
    model       text NOT NULL,
    session_key uuid NOT NULL,
    PRIMARY KEY (tenant, day, user_id, model, session_key)
);

-- migrate:down
DROP TABLE active_sessions;
DROP TABLE daily_counts;
