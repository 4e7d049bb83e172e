// Inserts an event in the transaction that records the execution, with database/sql and pgx.
//
//	cd examples/go && go mod tidy
//	DATABASE_URL=postgres://… go run ./insert [rollback]
//
// With rollback the application fails before its commit: nothing is recorded, and nothing is sent.
package main

import (
	"context"
	"database/sql"
	"errors"
	"log"
	"os"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
)

func main() {
	db, err := sql.Open("pgx", os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	if err := record(context.Background(), db, 1250400*time.Microsecond); err != nil {
		log.Fatal(err)
	}
}

func record(ctx context.Context, db *sql.DB, took time.Duration) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // After the commit it does nothing.

	// By tx, not by db: what db executes commits by itself.
	if _, err := tx.ExecContext(ctx, "INSERT INTO executions (user_id) VALUES ($1)", "user-123"); err != nil {
		return err
	}
	// Leave out each column that you have no value for. The zero value of a struct's field is a value, and a zero event_id
	// makes all events one to their receivers; examples/README.md tells what each zero does. A nil pointer is an explicit
	// NULL, right for provider_id, provider_default_model and total_tokens, and refused by columns such as ip and event_id.
	_, err = tx.ExecContext(ctx, `
		INSERT INTO relay.outbox (project_id, prompt_id, user_id, result, finished_at, duration_ms, prompt_tokens,
		                          completion_tokens)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		// A time.Time has its zone. A time.Duration counts nanoseconds, so Milliseconds() makes the integer.
		123, 456, "user-123", 0, time.Now(), took.Milliseconds(), 150, 300)
	if err != nil {
		return err
	}
	if len(os.Args) > 1 && os.Args[1] == "rollback" {
		return errors.New("the application fails before its commit")
	}
	return tx.Commit()
}
