-- A migration, as the tests have it, with which no daemon before works: a column that it reads has another name.

ALTER TABLE relay.outbox
    RENAME COLUMN parked TO set_aside;
