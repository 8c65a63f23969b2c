-- migrate:up

-- Messages are found across sessions by their owner and by their words. The owner is that of the
-- session; words are made by the service (service/domain/words.py), so that every language is
-- searched the same on every server. NULL: archived before there was a search.
ALTER TABLE messages
    ADD COLUMN user_id text,
    ADD COLUMN words tsvector;

-- role is last in both: a filter that is answered inside the index, without the row.
CREATE INDEX messages_by_time ON messages (tenant, id, role);
CREATE INDEX messages_by_user ON messages (tenant, user_id, id, role);
CREATE INDEX messages_by_word ON messages USING gin (words);

-- migrate:down
DROP INDEX messages_by_word;
DROP INDEX messages_by_user;
DROP INDEX messages_by_time;
ALTER TABLE messages DROP COLUMN words, DROP COLUMN user_id;
