# syntax=docker/dockerfile:1
# Builds the release binary and puts it, with its queries and configuration, into a small image that runs as nobody.
#
#   docker build -t runwarden --build-arg GIT_SHA=$(git rev-parse --short HEAD) .
#   docker run --rm --read-only -p 127.0.0.1:8080:8080 runwarden demo --listen 0.0.0.0:8080
FROM rust:1.95-bookworm AS build
ARG GIT_SHA=unknown
# TLS and SASL to Kafka, with OpenSSL built from source; --build-arg FEATURES= leaves both out and builds in half the time
ARG FEATURES=tls
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src ./src
COPY queries ./queries
COPY config ./config
# not built; the manifest names them
COPY tests ./tests
COPY benches ./benches
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    RUNWARDEN_GIT_SHA="$GIT_SHA" cargo build --release --locked --bin runwarden --features "$FEATURES" \
 && cp target/release/runwarden /runwarden

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/runwarden
COPY --from=build /runwarden /usr/local/bin/runwarden
COPY queries ./queries
COPY config ./config
# the only directory that is written to; everything else may be read-only
RUN mkdir data && chown 65532:65532 data
VOLUME /opt/runwarden/data
# a number, so that runAsNonRoot can be verified
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["runwarden"]
CMD ["run"]
