# The server as an image: slim, non-root, no compiler. The steps are those of `./run`: the same
# package and extras, installed by pip, and the same command.
#
#   docker build -t wfe-persistence .                          # for a PostgreSQL of your own
#   docker build -t wfe-persistence --target embedded .        # with PostgreSQL inside
#   docker run -p 50052:50052 -e WFE_PERSISTENCE_DB_URL=postgresql://… wfe-persistence
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY server server
COPY client_py client_py
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --disable-pip-version-check '.[server]'

FROM build AS build-embedded
RUN /venv/bin/pip install --no-cache-dir --disable-pip-version-check '.[server,embedded]'

FROM python:3.13-slim AS base
RUN useradd --system --uid 1000 --home-dir /var/lib/wfe-persistence --create-home wfe
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    WFE_PERSISTENCE_LISTEN=0.0.0.0:50052 \
    WFE_PERSISTENCE_DATA_DIR=/var/lib/wfe-persistence
USER 1000
EXPOSE 50052
HEALTHCHECK --interval=5s --timeout=4s --start-period=10s \
    CMD ["wfe-persistence", "health", "--target", "127.0.0.1:50052"]
ENTRYPOINT ["wfe-persistence"]
CMD ["serve"]

FROM base AS embedded
COPY --from=build-embedded /venv /venv
VOLUME /var/lib/wfe-persistence

FROM base AS server
COPY --from=build /venv /venv
