# MLflow server, Prefect server, and the setup before them.
FROM python:3.11.15-slim-bookworm@sha256:b18992999dbe963a45a8a4da40ac2b1975be1a776d939d098c647482bcad5cba

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    DO_NOT_TRACK=true \
    MLFLOW_DISABLE_TELEMETRY=true \
    PREFECT_SERVER_ANALYTICS_ENABLED=false

# The lock file less what only the pipeline needs, a third of its size; `pip check` finds what would be missing.
COPY requirements.lock /tmp/requirements.lock
RUN awk '/^[a-z]/ {keep = !/^(concept-erasure|dvc|dvc-.*|efficientnet-.*|geoopt|great-expectations|gto|hf-xet|huggingface-hub|onnx|onnx-ir|onnxruntime|onnxscript|pygit2|scmrepo|sympy|mpmath|timm|tokenizers|torchvision|transformers|safetensors|ml-dtypes)==/} keep' \
    /tmp/requirements.lock > /tmp/tracking.lock \
    && pip install --no-deps --require-hashes --only-binary :all: -r /tmp/tracking.lock \
    && pip check \
    && rm /tmp/*.lock

COPY --chmod=755 docker/with-secrets.sh /usr/local/bin/with-secrets
COPY docker/setup.py /srv/setup.py

RUN useradd --uid 10001 --create-home tracking
USER 10001:10001
WORKDIR /srv
ENTRYPOINT ["with-secrets"]
CMD ["mlflow", "server", "--help"]
