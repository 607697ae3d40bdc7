# Every target is meant to be run from the repository's root.
SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON := .venv/bin/python
# uv from PATH where there is one, else its own copy below .tools.
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
SYNC := $(UV) sync --locked --all-extras --quiet
FILES ?=
# Each process of the suite has servers of its own; given ones cannot be shared out.
PROCESSES := $(if $(KEYTURN_AMQP_URL)$(KEYTURN_S3_ENDPOINT_URL),0,3)
ARGS ?=

.PHONY: help
help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-8s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(UV)  ## Make the locked environment in .venv
	@$(SYNC)

.PHONY: test
test: setup  ## Run all tests on private servers; ARGS="-k upload -x" goes to pytest
	@$(PYTHON) -m pytest -n $(PROCESSES) --dist worksteal $(ARGS)

.PHONY: check
check: setup  ## Lint, formatting, types and import rules
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
	@.venv/bin/lint-imports

.PHONY: demo
demo: setup  ## Upload real files on private servers and show what came of them; FILES="a b dir"
	@$(PYTHON) -m tests.demo $(FILES)

.PHONY: bench
bench: $(UV)  ## Measure; prints a table and writes JSON
	@$(SYNC) --group bench
	@$(PYTHON) -m tests.bench $(ARGS)

.PHONY: chaos
chaos: setup  ## Break everything on a schedule, then check every object and message; ARGS="--seed 7"
	@$(PYTHON) -m tests.chaos $(ARGS)

.PHONY: lock
lock: $(UV)  ## Renew uv.lock from pyproject.toml
	@$(UV) lock

.PHONY: clean
clean:  ## Remove the environment, the tools and all caches
	@rm -rf .venv .tools .scratch dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find contracts workers tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian's python3 has venv but not ensurepip, which stands in python3-venv.
.tools/bin/uv:
	@if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null; \
	  else \
	    echo "uv is missing, and python3-venv to fetch it: install either one" >&2; exit 1; \
	  fi; \
	fi
	@rm -rf .tools && python3 -m venv .tools
	@.tools/bin/pip install --quiet --disable-pip-version-check uv
