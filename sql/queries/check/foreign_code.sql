-- Tell whose code would run in the daemon's sessions when they read relay.webhooks and write the relay's tables. The
-- function relay.foreign_code has the rules.
--
-- Locks:      none.
-- Index:      the catalogs'.
-- Parameters: none.
-- Returns:    one text for each piece of code; no row: no foreign code would run.
SELECT DISTINCT f.problem
  FROM (VALUES
        ('webhooks', false), ('migrations', false), ('installation', false), ('outbox', true), ('webhook_calls', true),
        ('instances', true), ('instances_since_crash', true), ('retention', true), ('pauses', true)
       ) AS ours (name, written)
  JOIN pg_class c
    ON c.relnamespace = 'relay'::regnamespace
   AND c.relname = ours.name
 CROSS JOIN LATERAL relay.foreign_code(c.oid, ours.written) AS f (problem)
 ORDER BY 1
