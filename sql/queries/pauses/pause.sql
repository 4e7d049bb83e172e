-- Pause a webhook, or all webhooks of a project.
--
-- Locks:      the pause's row: the statement waits for a transaction that has written the same one.
-- Index:      pauses_of_a_webhook or pauses_of_a_project.
-- Parameters: $1 bigint       webhook; null: a project
--             $2 bigint       project
--             $3 text         reason
--             $4 timestamptz  end; null: until an operator resumes
-- Returns:    nothing.
SELECT CASE WHEN $1::bigint IS NOT NULL THEN relay.pause_webhook($1, $3::text, $4::timestamptz)
            ELSE relay.pause_project($2::bigint, $3, $4) END
