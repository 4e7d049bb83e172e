-- Name the tables whose rows row level security hides from a role that must see them. Three roles must see them. The
-- first is the current user. The second is the owner of the schema, with whose rights its functions run. The third is
-- the owner of a view in the place of relay.webhooks, because the view reads with the owner's rights. Sessions have
-- row_security off, so Postgres refuses to read such a table. This statement tells which table, and why.
--
-- Locks:      none.
-- Index:      the catalogs'.
-- Parameters: none.
-- Returns:    the table, and the role that may not see all of it; by name.
WITH RECURSIVE seen AS (
    SELECT c.oid, r.reader
      FROM pg_namespace n
      JOIN pg_class c
        ON c.relnamespace = n.oid
       AND c.relname IN ('outbox', 'webhooks', 'webhook_calls', 'webhook_calls_default', 'instances',
                         'instances_since_crash', 'retention', 'migrations', 'installation', 'pauses')
     CROSS JOIN LATERAL (VALUES (n.nspowner), ((SELECT u.oid FROM pg_roles u WHERE u.rolname = current_user))) AS r (reader)
     WHERE n.nspname = 'relay'
     UNION
    SELECT d.refobjid,
           CASE WHEN 'security_invoker=true' = ANY (v.reloptions) OR 'security_invoker=on' = ANY (v.reloptions)
                THEN s.reader ELSE v.relowner END
      FROM seen s
      JOIN pg_class v
        ON v.oid = s.oid
       AND v.relkind = 'v'
      JOIN pg_rewrite w
        ON w.ev_class = v.oid
      JOIN pg_depend d
        ON d.classid = 'pg_rewrite'::regclass
       AND d.objid = w.oid
       AND d.refclassid = 'pg_class'::regclass
       AND d.refobjid <> v.oid
)
SELECT c.oid::regclass::text AS name, r.rolname::text AS reader
  FROM seen s
  JOIN pg_class c
    ON c.oid = s.oid
   AND c.relrowsecurity
  JOIN pg_roles r
    ON r.oid = s.reader
 WHERE NOT r.rolsuper
   AND NOT r.rolbypassrls
   AND (c.relforcerowsecurity OR NOT pg_has_role(r.oid, c.relowner, 'USAGE'))
 GROUP BY c.oid, r.rolname
 ORDER BY 1, 2
