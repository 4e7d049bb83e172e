// Receives webhooks with net/http: verifies the signature by hand, and processes each event once.
//
//	cd examples/go && go mod tidy
//	DATABASE_URL=postgres://… WEBHOOK_SECRET=whsec_… PORT=8003 go run ./receive
//
// DATABASE_URL is the receiver's own database, and WEBHOOK_SECRET the signing_secret of its row in relay.webhooks.
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
)

func main() {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(os.Getenv("WEBHOOK_SECRET"), "whsec_"))
	if err != nil || len(key) == 0 {
		log.Fatal("WEBHOOK_SECRET is no signing secret: ", err)
	}
	db, err := sql.Open("pgx", os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT")) // Without PORT, a free one.
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on http://%s/\n", listener.Addr())
	log.Fatal(http.Serve(listener, receiver(key, db)))
}

func receiver(key []byte, db *sql.DB) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		// The signature is that of the bytes that came: read them all before anything parses them.
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil || !verified(key, r.Header, body) {
			answer(w, http.StatusBadRequest, "refused")
			return
		}
		isNew, err := process(r, db, body)
		switch {
		case err != nil:
			log.Print(err) // The call is recorded as failed, and can be replayed.
			answer(w, http.StatusInternalServerError, "failed")
		case isNew:
			answer(w, http.StatusOK, "received")
		default:
			answer(w, http.StatusOK, "duplicate")
		}
	}
}

// The rule of Standard Webhooks: an HMAC of id, timestamp and body, at most five minutes old. While a secret is exchanged there are
// several signatures.
func verified(key []byte, header http.Header, body []byte) bool {
	id, timestamp := header.Get("webhook-id"), header.Get("webhook-timestamp")
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil || id == "" || time.Since(time.Unix(seconds, 0)).Abs() > 5*time.Minute {
		return false
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", id, timestamp, body)
	expected := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	for _, signature := range strings.Fields(header.Get("webhook-signature")) {
		if hmac.Equal([]byte(signature), []byte(expected)) { // In constant time.
			return true
		}
	}
	return false
}

// A replay, or a daemon that died, sends an event again with the same webhook-id. The id is written in the transaction that does the
// work: when the work fails, the id is not kept either.
func process(r *http.Request, db *sql.DB, body []byte) (bool, error) {
	tx, err := db.BeginTx(r.Context(), nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback() // After the commit it does nothing.
	result, err := tx.ExecContext(r.Context(),
		"INSERT INTO received_webhooks (webhook_id, event) VALUES ($1, $2) ON CONFLICT DO NOTHING",
		r.Header.Get("webhook-id"), string(body))
	if err != nil {
		return false, err
	}
	count, err := result.RowsAffected()
	if err != nil || count == 0 {
		return false, err
	}
	// Your work goes here, in this transaction. Answer within 10 seconds: what takes longer goes into a queue.
	return true, tx.Commit()
}

func answer(w http.ResponseWriter, code int, status string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	fmt.Fprintf(w, "{\"status\":%q}", status)
}
