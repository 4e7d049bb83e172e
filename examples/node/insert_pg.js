// Inserts an event in the transaction that records the execution, with pg.
//
//     (cd examples/node && npm ci)
//     DATABASE_URL=postgres://… node examples/node/insert_pg.js [rollback]
//
// With `rollback` the application fails before its commit: nothing is recorded, and nothing is sent.
import process from 'node:process';
import pg from 'pg';

const milliseconds = 1250.4; // What the prompt took, by performance.now().

// One client for the whole transaction: pool.query() may take another connection for each statement.
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });
const client = await pool.connect();
try {
  await client.query('BEGIN');
  await client.query('INSERT INTO executions (user_id) VALUES ($1)', ['user-123']);
  // Leave out each column that you have no value for. null and undefined are an explicit NULL: it replaces the column's
  // default, and columns such as ip, user_agent, cached and event_id refuse it.
  await client.query(
    `INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, finished_at, duration_ms, prompt_tokens,
                               completion_tokens)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
    [
      123,
      456,
      'user-123',
      0,
      // A Date, which pg sends with its offset. Postgres reads a text without one in the time zone of the session.
      new Date(),
      // An integer: Postgres refuses 1250.4, and the application's transaction fails.
      Math.round(milliseconds),
      150,
      300,
    ],
  );
  if (process.argv.includes('rollback')) throw new Error('the application fails before its commit');
  await client.query('COMMIT');
} catch (error) {
  await client.query('ROLLBACK');
  throw error;
} finally {
  client.release();
  await pool.end();
}
