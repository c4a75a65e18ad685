# The server as an image: slim, non-root, no compiler. It has the versions of constraints/, checked
# by hash, as `./run` installs them.
#
#   docker build -t wfe-persistence .                          # for a PostgreSQL of your own
#   docker build -t wfe-persistence --target embedded .        # with PostgreSQL inside
#   docker run -p 127.0.0.1:50052:50052 -e WFE_PERSISTENCE_DB_URL=postgresql://… \
#       -e WFE_PERSISTENCE_INSECURE=true wfe-persistence
#
# It listens on all addresses of the container, so without WFE_PERSISTENCE_INSECURE it starts only with
# TLS and authentication (docs/security.md).
#
# The base is pinned by its digest, so that the same build is the same image. To renew it:
#
#   docker buildx imagetools inspect python:3.13-slim --format '{{.Manifest.Digest}}'
#
# What is in the image, for those who have to know: `./run sbom`.
ARG BASE=python:3.13-slim@sha256:9d2e5553305c7c7b0097999bb17187c69b921ccd6bc9d40e4bb5ebe652c00285

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints constraints
RUN python -m venv /venv \
    && /venv/bin/pip install --require-hashes --requirement constraints/server.txt
COPY pyproject.toml LICENSE ./
COPY packages/python.md packages/python.md
COPY server server
COPY client_py client_py
COPY cli_py cli_py
COPY console console
COPY protos protos
RUN /venv/bin/pip install --no-deps --no-build-isolation .

FROM build AS build-embedded
RUN /venv/bin/pip install --require-hashes --requirement constraints/embedded.txt

FROM ${BASE} AS base
RUN useradd --system --uid 1000 --home-dir /var/lib/wfe-persistence --create-home wfe
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    WFE_PERSISTENCE_LISTEN=0.0.0.0:50052 \
    WFE_PERSISTENCE_DATA_DIR=/var/lib/wfe-persistence
USER 1000
EXPOSE 50052
HEALTHCHECK --interval=5s --timeout=4s --start-period=10s \
    CMD ["wfe-persistence", "health"]
ENTRYPOINT ["wfe-persistence"]
CMD ["serve"]

FROM base AS embedded
COPY --from=build-embedded /venv /venv
VOLUME /var/lib/wfe-persistence

FROM base AS server
COPY --from=build /venv /venv
