# Builds the release binary and puts it, with its queries and configuration, into a small image that runs as nobody.
#
#   docker build -t runwarden --build-arg GIT_SHA=$(git rev-parse --short HEAD) .
#   docker run --rm -p 8080:8080 runwarden demo --listen 0.0.0.0:8080
FROM rust:1.95-bookworm AS build
ARG GIT_SHA=unknown
# TLS and SASL to Kafka need it: --build-arg FEATURES=tls
ARG FEATURES=
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src ./src
COPY queries ./queries
COPY config ./config
COPY tests ./tests
COPY benches ./benches
RUN RUNWARDEN_GIT_SHA="$GIT_SHA" cargo build --release --locked --bin runwarden --features "$FEATURES"

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates tzdata \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/runwarden
COPY --from=build /src/target/release/runwarden /usr/local/bin/runwarden
COPY queries ./queries
COPY config ./config
RUN mkdir data && chown 65532:65532 data
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["runwarden"]
CMD ["run"]
