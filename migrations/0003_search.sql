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
-- New words wait in a list of the index until they are merged: by the flusher beside its batches
-- (service/adapters/postgres/word_index.py), by autovacuum, or, where the list is full, by the batch
-- that filled it. 16 MB are some 25,000 messages, a second of work.
CREATE INDEX messages_by_word ON messages USING gin (words)
    WITH (fastupdate = on, gin_pending_list_limit = 16384);

-- migrate:down
DROP INDEX messages_by_word;
DROP INDEX messages_by_user;
DROP INDEX messages_by_time;
ALTER TABLE messages DROP COLUMN words, DROP COLUMN user_id;
