// Receives webhooks with Express: verifies the signature, and processes each event once.
//
//     (cd examples/node && npm ci)
//     DATABASE_URL=postgres://… WEBHOOK_SECRET=whsec_… PORT=8002 node examples/node/receive.js
//
// DATABASE_URL is the receiver's own database, and WEBHOOK_SECRET the signing_secret of its row in relay.webhooks.
import process from 'node:process';
import express from 'express';
import pg from 'pg';
import { Webhook } from 'standardwebhooks';

const webhook = new Webhook(process.env.WEBHOOK_SECRET);
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });
const app = express();

// The signature is that of the bytes that came: express.raw(), never express.json(). JSON that is parsed and written again may
// have other bytes. The limit: an event with long texts has some 200 KiB, and without a limit of yours Express refuses 100 KiB.
app.post('/', express.raw({ type: () => true, limit: '1mb' }), async (request, response) => {
  try {
    webhook.verify(request.body, request.headers);
  } catch {
    response.status(400).json({ status: 'refused' });
    return;
  }
  // A replay, or a daemon that died, sends an event again with the same webhook-id. The id is written in the transaction that
  // does the work: when the work fails, the id is not kept either.
  const client = await pool.connect();
  try {
    await client.query('BEGIN');
    const { rowCount: isNew } = await client.query(
      'INSERT INTO received_webhooks (webhook_id, event) VALUES ($1, $2) ON CONFLICT DO NOTHING',
      [request.headers['webhook-id'], request.body.toString()],
    );
    if (isNew) {
      // Your work goes here, in this transaction. Answer within 10 seconds: what takes longer goes into a queue.
    }
    await client.query('COMMIT');
    response.json({ status: isNew ? 'received' : 'duplicate' });
  } catch (error) {
    await client.query('ROLLBACK');
    throw error; // Express answers 500: the call is recorded as failed, and can be replayed.
  } finally {
    client.release();
  }
});

const server = app.listen(Number(process.env.PORT ?? 8002), '127.0.0.1', () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}/`);
});
