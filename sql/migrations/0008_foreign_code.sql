-- Foreign code: whose code runs when the relay reads or writes what others may own.
--
-- Postgres runs the functions in views and triggers with the rights of the session that reads or writes. So the owner of
-- such a function can do what that session may do. A SECURITY DEFINER function is no fence against this, because code
-- inside it can leave deferred triggers, cursors and prepared statements behind for the session. So the relay asks first
-- whose code would run. It trusts superusers, the owner of the schema relay, and members of that role. Built-in functions
-- are in no list: pg_depend does not name them.
--
-- A view runs the functions that its definition names, and its owner can change them at any time. A table runs code only
-- when it is written: rules, triggers, defaults, constraints, indexes, domains. A foreign key that refers to a table of the
-- relay runs triggers of the other table when a row of the relay's goes. Policies run nothing: row_security is off, and
-- Postgres refuses.

CREATE FUNCTION relay.foreign_code(relation regclass, written boolean) RETURNS SETOF text
    LANGUAGE sql
    STABLE
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
    -- The sessions of the daemon have the planner settings of other statements.
    SET enable_seqscan = on
    SET enable_bitmapscan = on
    SET enable_nestloop = on
    SET enable_hashjoin = on
    SET enable_mergejoin = on
AS $$
    WITH RECURSIVE relations AS (
        SELECT relation::oid AS oid
        UNION
        SELECT next.oid
          FROM relations r
         CROSS JOIN LATERAL (
                -- Partitions.
                SELECT i.inhrelid AS oid
                  FROM pg_inherits i
                 WHERE i.inhparent = r.oid
                   AND written
                UNION ALL
                -- What a view or a rule reads and writes. A materialized view runs nothing when it is read.
                SELECT d.refobjid
                  FROM pg_rewrite w
                  JOIN pg_class c
                    ON c.oid = w.ev_class
                   AND c.relkind <> 'm'
                  JOIN pg_depend d
                    ON d.classid = 'pg_rewrite'::regclass
                   AND d.objid = w.oid
                   AND d.refclassid = 'pg_class'::regclass
                 WHERE w.ev_class = r.oid
               ) AS next
    ), known AS MATERIALIZED (
        SELECT c.oid, c.relkind, c.relowner, c.relnamespace = n.oid AS ours, n.nspowner AS trusted,
               pg_has_role(c.relowner, n.nspowner, 'MEMBER') AS is_trusted
          FROM relations r
          JOIN pg_class c
            ON c.oid = r.oid
          JOIN pg_namespace n
            ON n.nspname = 'relay'
    ), parts AS (
        -- Of a view: its definition. Of a table: its rules, which only the owner can make.
        SELECT k.oid, k.trusted, 'pg_rewrite'::regclass::oid AS classid, w.oid AS objid
          FROM known k
          JOIN pg_rewrite w
            ON w.ev_class = k.oid
         WHERE k.relkind <> 'm'
        UNION ALL
        SELECT k.oid, k.trusted, 'pg_trigger'::regclass, t.oid
          FROM known k
          JOIN pg_trigger t
            ON t.tgrelid = k.oid
           AND NOT t.tgisinternal
         WHERE written
        UNION ALL
        -- The rest is the owner's, and is checked where that is another role.
        SELECT k.oid, k.trusted, 'pg_class'::regclass, k.oid
          FROM known k
         WHERE written AND NOT k.is_trusted
        UNION ALL
        SELECT k.oid, k.trusted, 'pg_class'::regclass, i.indexrelid
          FROM known k
          JOIN pg_index i
            ON i.indrelid = k.oid
         WHERE written AND NOT k.is_trusted
        UNION ALL
        SELECT k.oid, k.trusted, d.classid, d.objid
          FROM known k
          JOIN pg_depend d
            ON d.refclassid = 'pg_class'::regclass
           AND d.refobjid = k.oid
           AND d.classid IN ('pg_attrdef'::regclass, 'pg_constraint'::regclass)
           AND d.deptype IN ('a', 'i')
         WHERE written AND NOT k.is_trusted
    ), used AS (
        SELECT p.oid, p.trusted, d.refclassid AS classid, d.refobjid AS objid
          FROM parts p
          JOIN pg_depend d
            ON d.classid = p.classid
           AND d.objid = p.objid
    )
    SELECT format('%s is a view of %s', k.oid::regclass, k.relowner::regrole)
      FROM known k
     WHERE k.relkind = 'v'
       AND NOT k.is_trusted
     UNION
    SELECT format('%s has a rule of %s', k.oid::regclass, k.relowner::regrole)
      FROM known k
      JOIN pg_rewrite w
        ON w.ev_class = k.oid
     WHERE k.relkind NOT IN ('v', 'm')
       AND written
       AND NOT k.is_trusted
     UNION
    SELECT format('%s runs function %s of %s', u.oid::regclass, f.oid::regprocedure, f.proowner::regrole)
      FROM used u
      JOIN pg_proc f
        ON u.classid = 'pg_proc'::regclass
       AND f.oid = u.objid
     WHERE NOT pg_has_role(f.proowner, u.trusted, 'MEMBER')
     UNION
    SELECT format('%s runs operator %s of %s', u.oid::regclass, o.oid::regoperator, o.oprowner::regrole)
      FROM used u
      JOIN pg_operator o
        ON u.classid = 'pg_operator'::regclass
       AND o.oid = u.objid
     WHERE NOT pg_has_role(o.oprowner, u.trusted, 'MEMBER')
     UNION
    SELECT format('%s has type %s of %s', u.oid::regclass, t.oid::regtype, t.typowner::regrole)
      FROM used u
      JOIN pg_type t
        ON u.classid = 'pg_type'::regclass
       AND t.oid = u.objid
     WHERE NOT pg_has_role(t.typowner, u.trusted, 'MEMBER')
     UNION
    SELECT format('%s has a foreign key of table %s of %s', k.oid::regclass, c.oid::regclass, c.relowner::regrole)
      FROM known k
      JOIN pg_constraint f
        ON f.contype = 'f'
       AND f.confrelid = k.oid
      JOIN pg_class c
        ON c.oid = f.conrelid
     WHERE written
       AND k.ours
       AND NOT pg_has_role(c.relowner, k.trusted, 'MEMBER')
     ORDER BY 1
$$;

COMMENT ON FUNCTION relay.foreign_code(regclass, boolean) IS
    'Whose code would run when a role reads this relation, or writes it too. Code of a superuser, of the owner of the schema relay or of a member of that role is left out. No row: only such code.';

-- The functions for people call this before they read relay.webhooks.
CREATE FUNCTION relay.require_own_webhooks() RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
AS $$
DECLARE
    foreign_code text;
BEGIN
    -- A view in its place runs functions with the rights of the role that reads it. What is locked stays as it was checked.
    LOCK TABLE relay.webhooks IN ACCESS SHARE MODE;
    SELECT f INTO foreign_code FROM relay.foreign_code('relay.webhooks', false) AS f LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'relay.webhooks would run code of others with the rights of the relay: %', foreign_code
            USING ERRCODE = 'insufficient_privilege', HINT = 'Give that to relay_owner, or take it out of relay.webhooks.';
    END IF;
END
$$;

COMMENT ON FUNCTION relay.require_own_webhooks() IS
    'Fails when to read relay.webhooks would run code of others with the caller''s rights; else no session changes that until the transaction ends.';

REVOKE ALL ON FUNCTION relay.foreign_code(regclass, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.require_own_webhooks() FROM PUBLIC;
