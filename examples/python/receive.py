"""Receives webhooks with Flask: verifies the signature, and processes each event once.

pip install -r examples/python/requirements.txt
DATABASE_URL=postgres://… WEBHOOK_SECRET=whsec_… PORT=8001 python examples/python/receive.py

DATABASE_URL is the receiver's own database, and WEBHOOK_SECRET the signing_secret of its row in relay.webhooks.
"""

import os

import psycopg
from flask import Flask, request
from standardwebhooks import Webhook, WebhookVerificationError
from werkzeug.serving import make_server

app = Flask(__name__)
webhook = Webhook(os.environ["WEBHOOK_SECRET"])


@app.post("/")
def receive():
    # The signature is that of the bytes that came. JSON that is parsed and written again has other bytes.
    body = request.get_data()
    try:
        webhook.verify(body, dict(request.headers))
    # ValueError: the library cannot read the signature or the body.
    except (WebhookVerificationError, ValueError):
        return {"status": "refused"}, 400
    # A replay, or a daemon that died, sends an event again with the same webhook-id. The id is written in the transaction
    # that does the work: when the work fails, the id is not kept either.
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        is_new = connection.execute(
            "INSERT INTO received_webhooks (webhook_id, event) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            [request.headers["webhook-id"], body.decode()],
        ).rowcount
        if is_new:
            pass  # Your work goes here, in this transaction. Answer within 10 seconds: what takes longer goes into a queue.
    return {"status": "received" if is_new else "duplicate"}


# For production choose a server such as gunicorn; this one comes with Flask.
server = make_server("127.0.0.1", int(os.environ.get("PORT", "8001")), app, threaded=True)
print(f"listening on http://127.0.0.1:{server.port}/", flush=True)
server.serve_forever()
