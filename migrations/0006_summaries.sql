-- migrate:up

-- A session's rolling summary: JSON text with the range of ids that it covers. summary_through is
-- the end of that range: a later summary reaches further, an earlier one changes nothing.
ALTER TABLE sessions
    ADD COLUMN summary json,
    ADD COLUMN summary_through uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000';

-- migrate:down
ALTER TABLE sessions DROP COLUMN summary_through, DROP COLUMN summary;
