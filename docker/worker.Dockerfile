# Prefect worker with the pipeline. For NVIDIA GPUs build with --build-arg TORCH="" : the package index's own wheel.
FROM python:3.11.15-slim-bookworm@sha256:b18992999dbe963a45a8a4da40ac2b1975be1a776d939d098c647482bcad5cba

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    DO_NOT_TRACK=true \
    DVC_NO_ANALYTICS=1 \
    ITERATIVE_DO_NOT_TRACK=1 \
    GX_ANALYTICS_ENABLED=false \
    MLFLOW_DISABLE_TELEMETRY=true \
    PREFECT_SERVER_ANALYTICS_ENABLED=false

# torch first: the largest layer, and the one that changes least. The CPU build needs nothing but what the lock file has.
ARG TORCH="--no-deps --index-url https://download.pytorch.org/whl/cpu"
# hadolint ignore=SC2086,DL3013
RUN pip install ${TORCH} torch==2.13.0

# Clones of the repository. Debian serves one version per release, so there is none to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*

COPY requirements.lock /tmp/requirements.lock
RUN pip install --no-deps --require-hashes -r /tmp/requirements.lock \
    && pip check \
    && rm /tmp/requirements.lock

COPY --chmod=755 docker/with-secrets.sh /usr/local/bin/with-secrets
COPY docker/worker-health.py /app/worker-health.py
COPY src /app/src
COPY flows /app/flows
COPY prefect.yaml /app/prefect.yaml
ENV PYTHONPATH=/app/src

# The worker's folder, on a volume: its clones, and links to what `expunge deploy` reads.
RUN useradd --uid 10001 --create-home expunge \
    && install --directory --owner=10001 --group=10001 /work /work/tmp \
    && ln -s /app/flows /app/prefect.yaml /work/
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["with-secrets"]
CMD ["python", "-m", "expunge.cli", "--help"]
