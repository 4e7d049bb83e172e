-- Whose code would run in the daemon's sessions when they read relay.webhooks and write the relay's tables. See the
-- function relay.foreign_code.
--
-- Locks:      none.
-- Index:      the catalogs'.
-- Parameters: none.
-- Returns:    a text for each; none: nobody's.
SELECT DISTINCT f.problem
  FROM (VALUES
        ('webhooks', false), ('migrations', false), ('outbox', true), ('webhook_calls', true), ('instances', true),
        ('instances_since_crash', true), ('retention', true)
       ) AS ours (name, written)
  JOIN pg_class c
    ON c.relnamespace = 'relay'::regnamespace
   AND c.relname = ours.name
 CROSS JOIN LATERAL relay.foreign_code(c.oid, ours.written) AS f (problem)
 ORDER BY 1
