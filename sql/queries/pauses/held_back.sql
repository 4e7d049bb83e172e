-- List calls that were held back, of a webhook or of those webhooks of a project that are called again. The function
-- relay.held_back_calls has the rule.
--
-- Locks:      none that anybody waits for, but one for each partition of the span, and its indexes.
-- Index:      webhook_calls_failures, webhook_calls_bloom and webhook_calls_place; outbox_replays; webhooks_project.
-- Parameters: $1 bigint       webhook; null: those of a project
--             $2 bigint       project
--             $3 timestamptz  held back then or later; null: within 31 days
--             $4 bigint       most calls
-- Returns:    ids, the oldest call first.
SELECT h.call_id
  FROM (
        SELECT $1::bigint AS id
         WHERE $1 IS NOT NULL
        UNION ALL
        SELECT w.id::bigint
          FROM relay.webhooks w
         WHERE $1 IS NULL
           AND w.project_id = $2::bigint
           AND w.enabled
           AND NOT EXISTS (SELECT
                             FROM relay.pauses p
                            WHERE p.webhook_id = w.id
                              AND (p.until IS NULL OR p.until > now()))
       ) AS resumed
 CROSS JOIN LATERAL relay.held_back_calls(
           resumed.id, least($3::timestamptz - interval '1 hour', now() - interval '31 days')) AS h (call_id)
 ORDER BY h.call_id
 LIMIT $4
