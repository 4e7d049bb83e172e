-- Tell whether the current user may do what `run` needs, one row for each need.
--
-- Locks:      none.
-- Index:      none.
-- Parameters: none.
-- Returns:    what, and whether it is granted.
SELECT need, granted
  FROM (VALUES
        (1, 'USAGE on schema relay',
         has_schema_privilege('relay', 'USAGE')),
        (2, 'SELECT on relay.outbox',
         has_table_privilege('relay.outbox', 'SELECT')),
        (3, 'UPDATE (claimed_by, previous_owner, done_at, parked, without_call) on relay.outbox',
         has_column_privilege('relay.outbox', 'claimed_by', 'UPDATE')
         AND has_column_privilege('relay.outbox', 'done_at', 'UPDATE')
         AND has_column_privilege('relay.outbox', 'parked', 'UPDATE')
         AND has_column_privilege('relay.outbox', 'previous_owner', 'UPDATE')
         AND has_column_privilege('relay.outbox', 'without_call', 'UPDATE')),
        (4, 'DELETE on relay.outbox',
         has_table_privilege('relay.outbox', 'DELETE')),
        (5, 'SELECT on relay.webhooks',
         has_column_privilege('relay.webhooks', 'id', 'SELECT')
         AND has_column_privilege('relay.webhooks', 'project_id', 'SELECT')
         AND has_column_privilege('relay.webhooks', 'url', 'SELECT')
         AND has_column_privilege('relay.webhooks', 'event', 'SELECT')
         AND has_column_privilege('relay.webhooks', 'enabled', 'SELECT')
         AND has_column_privilege('relay.webhooks', 'signing_secret', 'SELECT')),
        (6, 'INSERT on relay.webhook_calls',
         has_table_privilege('relay.webhook_calls', 'INSERT')),
        (7, 'USAGE on sequence relay.webhook_calls_id_seq',
         has_sequence_privilege('relay.webhook_calls_id_seq', 'USAGE')),
        (8, 'SELECT, INSERT, UPDATE and DELETE on relay.instances and relay.instances_since_crash',
         has_table_privilege('relay.instances', 'SELECT')
         AND has_table_privilege('relay.instances', 'INSERT')
         AND has_table_privilege('relay.instances', 'UPDATE')
         AND has_table_privilege('relay.instances', 'DELETE')
         AND has_table_privilege('relay.instances_since_crash', 'SELECT')
         AND has_table_privilege('relay.instances_since_crash', 'INSERT')
         AND has_table_privilege('relay.instances_since_crash', 'DELETE')),
        (9, 'EXECUTE on relay.is_daemon and relay.daemon_locks',
         has_function_privilege('relay.is_daemon(oid)', 'EXECUTE')
         AND has_function_privilege('relay.daemon_locks()', 'EXECUTE')),
        (10, 'EXECUTE on relay.cut_text, relay.cut_long_text, relay.call_partitions, relay.make_call_partition, relay.drop_call_partition, relay.delete_stray_calls and relay.foreign_code',
         has_function_privilege('relay.cut_text(text)', 'EXECUTE')
         AND has_function_privilege('relay.cut_long_text(text)', 'EXECUTE')
         AND has_function_privilege('relay.call_partitions()', 'EXECUTE')
         AND has_function_privilege('relay.make_call_partition(date)', 'EXECUTE')
         AND has_function_privilege('relay.drop_call_partition(text, timestamptz)', 'EXECUTE')
         AND has_function_privilege('relay.delete_stray_calls(timestamptz, integer)', 'EXECUTE')
         AND has_function_privilege('relay.foreign_code(regclass, boolean)', 'EXECUTE')),
        (11, 'SELECT, INSERT and UPDATE on relay.retention',
         has_table_privilege('relay.retention', 'SELECT')
         AND has_table_privilege('relay.retention', 'INSERT')
         AND has_column_privilege('relay.retention', 'seen_at', 'UPDATE')
         AND has_column_privilege('relay.retention', 'steady_since', 'UPDATE')
         AND has_column_privilege('relay.retention', 'next_at', 'UPDATE')
         AND has_column_privilege('relay.retention', 'completed_at', 'UPDATE')
         AND has_column_privilege('relay.retention', 'dropped_at', 'UPDATE')),
        (12, 'SELECT on relay.installation, EXECUTE on relay.is_copy and on pg_control_system',
         has_table_privilege('relay.installation', 'SELECT')
         AND has_function_privilege('relay.is_copy()', 'EXECUTE')
         AND has_function_privilege('pg_control_system()', 'EXECUTE')),
        (13, 'SELECT on relay.pauses, EXECUTE on relay.pause_failing_webhook and relay.delete_ended_pauses',
         has_table_privilege('relay.pauses', 'SELECT')
         AND has_function_privilege('relay.pause_failing_webhook(bigint, timestamptz, text)', 'EXECUTE')
         AND has_function_privilege('relay.delete_ended_pauses(timestamptz)', 'EXECUTE'))
       ) AS needs (n, need, granted)
 ORDER BY n
