# Every target sets up what it needs (tools/bootstrap.sh) and skips that when it is done. `make help` lists them.
SHELL := bash
VENV ?= .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
export VENV PYTHON
# Two settings of a shell that would slow or mislead: no compiled modules, and another active environment.
unexport PYTHONDONTWRITEBYTECODE VIRTUAL_ENV PYTHONHOME PYTHONPATH

CHECKS := check-notebooks check-export check-ruff check-types check-layers test-notebooks test-python test-browser test-outputs test-runbooks

.PHONY: help setup servers study test lab bench prepare lock readme clean $(CHECKS)
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## the environment, from the lock (the other targets do this themselves)
	@tools/bootstrap.sh

study: setup ## the weekly signal study: fetch or simulate candles, study them, write the report
	@$(BIN)/deskbook weekly

lab: setup ## JupyterLab on this repository
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root)

test: setup ## every check below, with timings
	@tools/run_checks.sh $(CHECKS)

check-notebooks: setup ## structure of notebooks and runbooks (nbx check)
	@$(BIN)/nbx check

check-export: setup ## exporting the notebooks would change nothing
	@$(PY) tools/check_export.py

check-ruff: setup ## ruff on modules, tests and scripts
	@$(BIN)/ruff check $(wildcard src tests benchmarks tools)

check-types: setup ## mypy on src/
	@$(BIN)/mypy

check-layers: setup ## a package imports only from packages above it
	@$(BIN)/lint-imports

servers: setup ## PostgreSQL and Valkey or Redis for the tests: installed as root, else named
	@$(PY) tools/system_packages.py

test-notebooks: servers ## run every notebook in nbs/
	@$(BIN)/nbdev-test --n-workers 2

test-python: servers ## pytest, in two processes
	@$(BIN)/pytest tests --ignore=tests/runbooks --ignore=tests/browser -n 2 --dist worksteal

test-browser: servers ## the dashboard in the system's Chromium, at a running desk
	@$(BIN)/pytest tests/browser

test-outputs: setup ## notebooks whose outputs are the point, compared (nbval)
	@$(BIN)/pytest --nbval tests/golden_outputs -p no:cacheprovider

test-runbooks: servers ## every runbook on sample data
	@$(BIN)/pytest tests/runbooks -n 2 --dist worksteal

bench: servers ## every benchmark, one after another; QUICK=1 for a look
	@failed=0; for f in benchmarks/bench_*.py; do \
	  [ -e "$$f" ] || { echo "no benchmarks yet"; break; }; \
	  printf '\n======== %s\n' "$$f"; \
	  $(PY) "$$f" $(if $(QUICK),--quick) || { echo "$$f failed"; failed=1; }; \
	done; exit $$failed

prepare: servers ## export, clean, run the notebooks, write README.md
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean
	$(BIN)/nbdev-test --n-workers 2
	$(PY) tools/readme.py

readme: setup ## README.md from nbs/index.ipynb
	@$(PY) tools/readme.py

# Only names, versions and hashes: a lock must not name a registry.
LOCK := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.12 --generate-hashes --upgrade \
  --no-header --no-annotate --no-emit-index-url --no-emit-find-links
lock: setup ## renew both locks to the newest versions allowed
	$(LOCK) --extra lab --extra dev -o requirements-dev.lock
	$(LOCK) --constraints requirements-dev.lock -o requirements.lock

clean: ## remove caches and build folders (the environment and the reports stay)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
