-- migrate:up

-- For STORE=postgres: a turn is looked up by its id, and asked to end by whoever may.
ALTER TABLE calls ADD COLUMN turn_id text;
ALTER TABLE calls DROP CONSTRAINT calls_state_check;
ALTER TABLE calls ADD CONSTRAINT calls_state_check
    CHECK (state IN ('running', 'done', 'failed', 'interrupted'));
CREATE INDEX calls_by_turn ON calls (session_key, turn_id) WHERE turn_id IS NOT NULL;
ALTER TABLE turn_leases ADD COLUMN cancelled boolean NOT NULL DEFAULT false;

-- migrate:down
ALTER TABLE turn_leases DROP COLUMN cancelled;
DROP INDEX calls_by_turn;
UPDATE calls SET state = 'failed' WHERE state = 'interrupted';
ALTER TABLE calls DROP CONSTRAINT calls_state_check;
ALTER TABLE calls ADD CONSTRAINT calls_state_check CHECK (state IN ('running', 'done', 'failed'));
ALTER TABLE calls DROP COLUMN turn_id;
