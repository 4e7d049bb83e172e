# The handful of commands that people type. `just` lists them.

_list:
    @just --list

# What decides whether a change lands
ci:
    .ci/run

# All tests
test:
    scripts/with-postgres cargo test --locked

# The tests whose names have this text
one text:
    scripts/with-postgres cargo test --locked -- {{ text }}

# Three relays, killed and frozen at random for so many seconds
chaos seconds="600":
    CHAOS_SECONDS={{ seconds }} scripts/with-postgres cargo test --locked --test it chaos -- --nocapture

# The programs under examples/, against the real daemon
examples:
    scripts/with-postgres scripts/test-examples

# What docs/performance.md says; `just bench drain` for one row
bench *rows:
    cargo bench --locked -- {{ rows }}

# The architecture, and each module
doc:
    cargo doc --locked --no-deps --document-private-items --open
