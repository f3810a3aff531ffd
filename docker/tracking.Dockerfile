# MLflow server, Prefect server, and the setup before them.
FROM python:3.11.15-slim-bookworm@sha256:b18992999dbe963a45a8a4da40ac2b1975be1a776d939d098c647482bcad5cba

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    DO_NOT_TRACK=true \
    MLFLOW_DISABLE_TELEMETRY=true \
    PREFECT_SERVER_ANALYTICS_ENABLED=false

# The lock file less what only the pipeline needs; `pip check` finds what would be missing.
COPY requirements.lock docker/pipeline-only.txt /tmp/
RUN awk -F '[= ]' 'NR == FNR {drop[$1]; next} /^[a-z]/ {keep = !($1 in drop)} keep' \
    /tmp/pipeline-only.txt /tmp/requirements.lock > /tmp/tracking.lock \
    && pip install --no-deps --require-hashes --only-binary :all: -r /tmp/tracking.lock \
    && pip check \
    && rm /tmp/*.lock /tmp/*.txt

COPY --chmod=755 docker/with-secrets.sh /usr/local/bin/with-secrets
COPY docker/setup.py docker/who_moved.py /srv/
ENV PYTHONPATH=/srv

RUN useradd --uid 10001 --create-home tracking
USER 10001:10001
WORKDIR /srv
ENTRYPOINT ["with-secrets"]
CMD ["mlflow", "server", "--help"]
