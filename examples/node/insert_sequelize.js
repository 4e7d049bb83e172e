// Inserts an event in the transaction that records the execution, with Sequelize 6.
//
//     (cd examples/node && npm ci)
//     DATABASE_URL=postgres://… node examples/node/insert_sequelize.js [rollback]
//
// With `rollback` the application fails before its commit: nothing is recorded, and nothing is sent.
import process from 'node:process';
import { DataTypes, Sequelize } from 'sequelize';

const sequelize = new Sequelize(process.env.DATABASE_URL, { logging: false });
const { BIGINT, DATE, INTEGER, SMALLINT, TEXT } = DataTypes;
const id = { type: BIGINT, primaryKey: true, autoIncrement: true };

const Execution = sequelize.define('Execution', { id, user_id: TEXT }, { tableName: 'executions', timestamps: false });

// Name the columns that you write, and none that the daemon writes (claimed_by, done_at, parked, without_call).
// timestamps: false, because there are no columns createdAt and updatedAt.
const Event = sequelize.define(
  'Event',
  {
    id,
    project_id: BIGINT,
    prompt_id: BIGINT,
    user_id: TEXT,
    result: SMALLINT,
    finished_at: DATE,
    duration_ms: BIGINT,
    prompt_tokens: INTEGER,
    completion_tokens: INTEGER,
    ip: TEXT,
  },
  { schema: 'relay', tableName: 'outbox', timestamps: false },
);

try {
  await sequelize.transaction(async (transaction) => {
    // Each create() gets the transaction. Without it the insert commits by itself, and a rollback does not take it back.
    await Execution.create({ user_id: 'user-123' }, { transaction });
    await Event.create(
      {
        project_id: 123,
        prompt_id: 456,
        user_id: 'user-123',
        result: 0,
        // A Date. Postgres reads a text without an offset in the time zone of the session.
        finished_at: new Date(),
        // An integer: Postgres refuses 1250.4, and the application's transaction fails.
        duration_ms: Math.round(1250.4),
        prompt_tokens: 150,
        completion_tokens: 300,
        // No ip: the column's default applies. `ip: null` is an explicit NULL, and the column refuses it.
      },
      { transaction },
    );
    if (process.argv.includes('rollback')) throw new Error('the application fails before its commit');
  });
} finally {
  await sequelize.close();
}
