# One compile, three images: docker build --target model-registry|predict|rag .
#
# Bases are pinned by the digest of their multi-platform index. The tag beside it says what the digest was when it was
# pinned; docs/deploy.md says how to move both. No `# syntax` line: nothing here needs a newer frontend than BuildKit's own.
ARG RUST_IMAGE=docker.io/library/rust:1.95.0-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot@sha256:9dac0a79194e45a7da0158a9c6da57b217585af0786db3845d1f0ec1a0dd182f

FROM ${RUST_IMAGE} AS chef
# The image's own toolchain is that of rust-toolchain.toml, which would have rustup fetch formatter and linter besides.
ENV RUSTUP_TOOLCHAIN=1.95.0
ARG CARGO_CHEF_VERSION=0.1.77
RUN cargo install cargo-chef --locked --version "${CARGO_CHEF_VERSION}"
WORKDIR /src

# What the dependencies are, without the sources: the next stage's cache stands until Cargo.lock or a manifest changes.
FROM chef AS plan
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

FROM chef AS build
# Line tables would be two thirds of the image; the symbols that stay name the functions of a backtrace.
ENV CARGO_INCREMENTAL=0 \
    CARGO_PROFILE_RELEASE_DEBUG=none \
    CARGO_PROFILE_RELEASE_STRIP=debuginfo
COPY .cargo .cargo
COPY --from=plan /src/recipe.json recipe.json
RUN cargo chef cook --release --locked --recipe-path recipe.json \
        --package model-registry --package predict --package rag
COPY . .
RUN cargo build --release --locked --package model-registry --package predict --package rag \
    && mkdir -p /out/data \
    && cp target/release/model-registry target/release/predict target/release/rag /out/

# What the three have in common: no shell, no package manager, no root. /data is the only place they write to, and
# everything in it can be a volume: the root file system may be read-only.
FROM ${RUNTIME_IMAGE} AS runtime
ARG VERSION=0.0.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
ARG SOURCE=
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV LOG_FORMAT=json
COPY --from=build --chown=65532:65532 /out/data /data
USER 65532:65532
WORKDIR /data
VOLUME ["/data"]
CMD ["serve"]

FROM runtime AS model-registry
LABEL org.opencontainers.image.title="model-registry" \
      org.opencontainers.image.description="Verdict: models, immutable versions, aliases, artifacts; MLflow's REST API"
ENV MODEL_REGISTRY_LISTEN=0.0.0.0:50051 \
    MODEL_REGISTRY_ADMIN_LISTEN=0.0.0.0:9101 \
    MODEL_REGISTRY_MLFLOW_LISTEN=0.0.0.0:5000 \
    MODEL_REGISTRY_DATA_DIR=/data
EXPOSE 50051 9101 5000
COPY --from=build /out/model-registry /usr/local/bin/model-registry
ENTRYPOINT ["/usr/local/bin/model-registry"]

FROM runtime AS predict
LABEL org.opencontainers.image.title="predict" \
      org.opencontainers.image.description="Verdict: serves models and makes decisions with a durable record"
ENV PREDICT_LISTEN=0.0.0.0:50052 \
    PREDICT_ADMIN_LISTEN=0.0.0.0:9102 \
    PREDICT_DATA_DIR=/data
EXPOSE 50052 9102
COPY --from=build /out/predict /usr/local/bin/predict
ENTRYPOINT ["/usr/local/bin/predict"]

FROM runtime AS rag
LABEL org.opencontainers.image.title="rag" \
      org.opencontainers.image.description="Verdict: ingests documents, searches them, answers with verified citations"
ENV RAG_LISTEN=0.0.0.0:50053 \
    RAG_ADMIN_LISTEN=0.0.0.0:9103 \
    RAG_DATA_DIR=/data
EXPOSE 50053 9103
COPY --from=build /out/rag /usr/local/bin/rag
ENTRYPOINT ["/usr/local/bin/rag"]
