# What a contributor runs; `just --list` shows it.

# exactly what CI runs
verify:
    .ci/run

# the quick part: format, lints, tests without a broker
quick:
    .ci/run tools format lint test

# the whole system in one process, no broker needed
demo *args:
    cargo run -- demo {{args}}

# the Kafka suite against a real broker that the script installs and starts
kafka:
    .ci/run kafka
