-- Delete the done outbox rows of a window of ids. The window bounds the cost even when it is full of pending rows.
--
-- Locks:      the rows, which no other session wants: they are done.
-- Index:      outbox_pkey, the window, and one probe behind it.
-- Parameters: $1 bigint       ids from it
--             $2 bigint       ids below it
--             $3 timestamptz  the oldest time that is kept
--             $4 timestamptz  when the run began: the clock may have jumped since
-- Returns:    how many rows were deleted, and the next id to read. That id is null when there is none. It is also null
--             when the window has rows that are too young, because the rows after it are younger still. A row of the
--             future says nothing, because the application or a wrong clock wrote it.
WITH deleted AS (
    DELETE FROM relay.outbox o
     WHERE o.id >= $1
       AND o.id < $2
       AND o.done_at < $3
    RETURNING 1
)
SELECT (SELECT count(*) FROM deleted) AS deleted,
       CASE WHEN NOT EXISTS (SELECT
                               FROM relay.outbox o
                              WHERE o.id >= $1
                                AND o.id < $2
                                AND o.created_at BETWEEN $3 AND $4)
            THEN (SELECT o.id FROM relay.outbox o WHERE o.id >= $2 ORDER BY o.id LIMIT 1) END AS next
