-- Name our tables whose rows Postgres lets no role update or delete, because a publication has them and they have no usable
-- replica identity. Ours are all tables of the schema, and the partitions of the call log wherever they are. A publication
-- that names a partitioned table also has its partitions.
--
-- A usable identity is one of two. The first is all columns. The second is the columns of the primary key, or of the
-- index that was chosen. Then the publication must have all of them (a list of columns), and its condition on rows may
-- use no others.
--
-- Locks:      none.
-- Index:      the catalogs'.
-- Parameters: none.
-- Returns:    the table, and the publication; by name.
WITH RECURSIVE log AS (
    SELECT to_regclass('relay.webhook_calls')::oid AS oid
    UNION ALL
    SELECT i.inhrelid
      FROM log
      JOIN pg_inherits i
        ON i.inhparent = log.oid
), ours AS (
    SELECT c.oid, c.relreplident
      FROM pg_class c
     WHERE c.relkind = 'r'
       AND c.relpersistence = 'p'
       AND (c.relnamespace = to_regnamespace('relay') OR c.oid IN (SELECT oid FROM log))
), above AS (
    SELECT o.oid, o.oid AS named
      FROM ours o
    UNION ALL
    SELECT a.oid, i.inhparent
      FROM above a
      JOIN pg_inherits i
        ON i.inhrelid = a.named
), published AS (
    -- By name, each with its list of columns (Postgres 15 and newer; null: all).
    SELECT a.oid, p.pubname, r.oid AS entry,
           CASE WHEN jsonb_typeof(to_jsonb(r) -> 'prattrs') = 'array'
                THEN ARRAY(SELECT n::smallint FROM jsonb_array_elements_text(to_jsonb(r) -> 'prattrs') AS n) END AS attributes
      FROM above a
      JOIN pg_publication_rel r
        ON r.prrelid = a.named
      JOIN pg_publication p
        ON p.oid = r.prpubid
     WHERE p.pubupdate OR p.pubdelete
     UNION ALL
    -- In any way, also by all tables or all of a schema.
    SELECT a.oid, p.pubname, NULL, NULL
      FROM above a
      JOIN pg_class c
        ON c.oid = a.named
      JOIN pg_namespace n
        ON n.oid = c.relnamespace
      JOIN pg_publication_tables t
        ON t.schemaname = n.nspname
       AND t.tablename = c.relname
      JOIN pg_publication p
        ON p.pubname = t.pubname
     WHERE p.pubupdate OR p.pubdelete
), identities AS (
    SELECT o.oid, i.indkey::smallint[] AS attributes
      FROM ours o
      JOIN pg_index i
        ON i.indrelid = o.oid
       AND i.indisvalid
       AND (o.relreplident = 'd' AND i.indisprimary OR o.relreplident = 'i' AND i.indisreplident)
)
SELECT DISTINCT p.oid::regclass::text, p.pubname::text
  FROM published p
  JOIN ours o
    ON o.oid = p.oid
  LEFT JOIN identities i
    ON i.oid = p.oid
 WHERE CASE WHEN o.relreplident = 'f' THEN p.attributes IS NOT NULL
            WHEN i.oid IS NULL THEN true
            WHEN p.attributes IS NOT NULL
            THEN NOT i.attributes <@ p.attributes
            -- The columns that the condition on rows uses.
            ELSE EXISTS (SELECT
                           FROM pg_depend d
                          WHERE d.classid = 'pg_publication_rel'::regclass
                            AND d.objid = p.entry
                            AND d.refclassid = 'pg_class'::regclass
                            AND d.refobjsubid > 0
                            AND d.refobjsubid <> ALL (i.attributes)) END
 ORDER BY 1, 2
