"""Inserts an event in the transaction that records the execution, with psycopg 3.

pip install -r examples/python/requirements.txt
DATABASE_URL=postgres://… python examples/python/insert_psycopg.py [rollback]

With `rollback` the application fails before its commit: nothing is recorded, and nothing is sent.
"""

import os
import sys
from datetime import datetime, timezone

import psycopg

seconds = 1.25  # What the prompt took, by time.monotonic().
# With a time zone. Postgres would read datetime.now() in the time zone of the session, and a wrong hour fails nothing.
finished_at = datetime.now(timezone.utc)
# An integer of milliseconds. Postgres rounds a float without an error, so seconds would arrive as milliseconds.
duration_ms = round(seconds * 1000)

# One transaction: the block commits at its end, and rolls back when an exception leaves it.
with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    connection.execute("INSERT INTO executions (user_id) VALUES (%s)", ["user-123"])
    # Leave out each column that you have no value for. None is an explicit NULL: it replaces the column's default, and
    # columns such as ip, user_agent, cached and event_id refuse it.
    connection.execute(
        """
        INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, finished_at, duration_ms, prompt_tokens,
                                  completion_tokens)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
        """,
        [123, 456, "user-123", 0, finished_at, duration_ms, 150, 300],
    )
    if "rollback" in sys.argv:
        raise RuntimeError("the application fails before its commit")
