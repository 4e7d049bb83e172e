"""Inserts an event in the transaction that records the execution, with SQLAlchemy 2.

pip install -r examples/python/requirements.txt
DATABASE_URL=postgres://… python examples/python/insert_sqlalchemy.py [rollback]

With `rollback` the application fails before its commit: nothing is recorded, and nothing is sent.
"""

import os
import sys
from datetime import datetime, timezone

from sqlalchemy import BigInteger, DateTime, FetchedValue, Identity, create_engine, make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    type_annotation_map = {int: BigInteger, datetime: DateTime(timezone=True)}


class Execution(Base):
    __tablename__ = "executions"
    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    user_id: Mapped[str]


class Event(Base):
    # Map the columns that you write, and none that the daemon writes (claimed_by, done_at, parked, without_call).
    __tablename__ = "outbox"
    __table_args__ = {"schema": "relay"}
    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    project_id: Mapped[int]
    prompt_id: Mapped[int]
    user_id: Mapped[str]
    result: Mapped[int]
    finished_at: Mapped[datetime]
    duration_ms: Mapped[int]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    # A column with a default in the database says so here. Without server_default SQLAlchemy inserts an explicit NULL for an
    # attribute that is not set. An attribute that is set to None is an explicit NULL in any case.
    ip: Mapped[str] = mapped_column(server_default=FetchedValue())
    user_agent: Mapped[str] = mapped_column(server_default=FetchedValue())


# SQLAlchemy knows no postgres://, and chooses a driver by itself unless the URL names one.
url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg")
# One transaction: begin() commits at the end of the block, and rolls back when an exception leaves it.
with Session(create_engine(url)) as session, session.begin():
    session.add(Execution(user_id="user-123"))
    session.add(
        Event(
            project_id=123,
            prompt_id=456,
            user_id="user-123",
            result=0,
            # With a time zone. Postgres would read datetime.now() in the time zone of the session.
            finished_at=datetime.now(timezone.utc),
            # An integer of milliseconds. Postgres rounds a float without an error.
            duration_ms=round(1.25 * 1000),
            prompt_tokens=150,
            completion_tokens=300,
        )
    )
    if "rollback" in sys.argv:
        session.flush()
        raise RuntimeError("the application fails before its commit")
