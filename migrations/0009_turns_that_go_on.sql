-- migrate:up

-- For STORE=postgres: what a turn goes on with when its tools have answered.
ALTER TABLE calls ADD COLUMN asked bytea NOT NULL DEFAULT '';

-- migrate:down
ALTER TABLE calls DROP COLUMN asked;
