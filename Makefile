# Every target is meant to be run from the repository's root.
SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Without .pyc files, pytest rewrites the assertions of all test modules in every process.
unexport PYTHONDONTWRITEBYTECODE

PYTHON := .venv/bin/python
# The same minor version wherever this runs: Debian 13's own, where it exists. Another one:
# UV_PYTHON=python3.11 make unit.
UV_PYTHON ?= $(firstword $(wildcard /usr/bin/python3.13) $(shell command -v python3.13 || command -v python3))
export UV_PYTHON
# The oldest Python that the packages support.
OLDEST := $(shell sed -n 's/^requires-python = ">=\(.*\)"/\1/p' workers/pyproject.toml)
# uv from PATH where there is one, else its own copy below .tools.
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
SYNC := $(UV) sync --locked --all-packages --all-extras --quiet
# The shipped set: what the image holds.
EXPORT := $(UV) export --locked --package keyturn-workers --extra pkcs11 --extra console --extra otel --no-default-groups --quiet
FILES ?=
# Each process of the suite has servers of its own; given ones cannot be shared out. They mostly
# wait, for leases and retries, so that five of them fill two cores.
PROCESSES := $(if $(KEYTURN_AMQP_URL)$(KEYTURN_S3_ENDPOINT_URL),0,5)
ARGS ?=
# Lines and branches that the tests without servers reach, in per cent.
COVERAGE := 78

.PHONY: help
help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-15s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(UV)  ## Make the locked environment in .venv
	@[ -x $(PYTHON) ] || echo "Installing the locked Python packages and Node.js into $(PYTHON:/bin/python=): this takes minutes the first time" >&2
	@$(SYNC)

.PHONY: python
python:  ## Show which Python the environment is made with
	@echo "$$($(UV_PYTHON) --version), $(UV_PYTHON)"

# With pytest-xdist, each process collects all tests, and each test costs milliseconds more. So what
# `make unit` runs comes first, without it.
AFTER_UNIT = -m "slow or not unit" tests/acceptance tests/fuzz tests/integration tests/protocol \
  $(shell grep -rl --include=*.py 'mark\.slow' tests/unit tests/contract)
.PHONY: test
test: setup  ## Run all tests on private servers; ARGS="-k upload -x" goes to pytest
	@unit=0; $(if $(ARGS),,$(MAKE) unit || unit=$$?;) \
	$(PYTHON) -m pytest -n $(PROCESSES) --dist worksteal $(or $(ARGS),$(AFTER_UNIT)) && exit $$unit

# Four pytest processes in parallel; with pytest-xdist, each process would collect all tests.
UNIT_OPTIONS := -q -p no:schemathesis -p no:xdist -m "not slow"
# Exit status 5: ARGS selected no test in this group.
unit_run = $(PYTHON) -m pytest $(UNIT_OPTIONS) -o cache_dir=.pytest_cache/$@ $(1) $(ARGS) || $(if $(ARGS),[ $$? -eq 5 ],false)
UNIT_WORKERS := tests/unit/keyturn_workers
UNIT_INTERFACES := $(addprefix $(UNIT_WORKERS)/,pipeline/amqp cli process/http_server storage)
UNIT_SERVICES := $(addprefix $(UNIT_WORKERS)/,console gateway pipeline/sweep)

.PHONY: unit unit-contracts unit-interfaces unit-services unit-workers
unit: setup  ## Run the tests that need no server, within a minute
	@$(MAKE) --jobs=4 --output-sync=target unit-contracts unit-interfaces unit-services unit-workers
unit-contracts:
	@$(call unit_run,tests/unit tests/contract --ignore=$(UNIT_WORKERS))
unit-interfaces:
	@$(call unit_run,$(UNIT_INTERFACES))
unit-services:
	@$(call unit_run,$(UNIT_SERVICES))
unit-workers:
	@$(call unit_run,$(UNIT_WORKERS) $(UNIT_INTERFACES:%=--ignore=%) $(UNIT_SERVICES:%=--ignore=%))

.PHONY: unit-oldest
unit-oldest: $(UV)  ## The same in .venv-oldest with the oldest supported Python, if it is installed
	@if python=$$($(UV) python find --system --no-python-downloads --quiet $(OLDEST) 2>/dev/null); then \
	  UV_PYTHON=$$python UV_PROJECT_ENVIRONMENT=.venv-oldest $(MAKE) unit PYTHON=.venv-oldest/bin/python; \
	else echo "unit-oldest skipped: Python $(OLDEST) is not installed here"; fi

.PHONY: coverage
coverage: setup  ## Run the tests that need no server, and fail below the floor of coverage
	@$(PYTHON) -m pytest -n 2 --dist worksteal -q --cov --cov-report=term:skip-covered \
	  --cov-fail-under=$(COVERAGE) tests/unit tests/contract $(ARGS)

.PHONY: docs
docs: $(UV)  ## Build the documentation as a site in site/; fails on a broken link
	@$(SYNC) --group docs
	@NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

.PHONY: check
check: setup  ## Lint, formatting, types, import rules, declared dependencies, workflows and compose.yaml
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@.venv/bin/deptry --config contracts/pyproject.toml contracts/keyturn
	@.venv/bin/deptry --config workers/pyproject.toml workers/keyturn_workers
	@.venv/bin/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@.venv/bin/check-jsonschema --quiet --builtin-schema vendor.compose-spec compose.yaml
	@.venv/bin/check-jsonschema --quiet --builtin-schema vendor.renovate renovate.json
	@.venv/bin/zizmor --offline --quiet --min-severity medium .github/workflows

.PHONY: audit
audit: setup  ## Check what is shipped for known vulnerabilities; passes if the database is unreachable
	@mkdir -p dist
	@$(EXPORT) --format requirements.txt --no-emit-workspace --output-file dist/requirements.txt >/dev/null
	@$(PYTHON) -m tools.supply.audit dist/requirements.txt

.PHONY: sbom
sbom: setup  ## Write dist/keyturn.cdx.json: what is shipped, as CycloneDX, checked
	@mkdir -p dist
	@$(EXPORT) --format cyclonedx1.5 --output-file dist/keyturn.cdx.json >/dev/null
	@$(PYTHON) -m tools.supply.sbom dist/keyturn.cdx.json

.PHONY: release-check
release-check: $(UV)  ## Build all that a release publishes into dist/, twice, install it and use it; sends nothing
	@$(SYNC) --group release
	@$(PYTHON) -m tools.release $(ARGS)

.PHONY: typescript
typescript: setup  ## Check, build and test the TypeScript client; ARGS=--write renews what is generated
	@$(PYTHON) -m tools.typescript $(ARGS)

.PHONY: image-test
image-test: setup  ## Build the images and run every role from them; skipped where no engine can run
	@$(PYTHON) -m tools.containers image $(ARGS)

.PHONY: compose-test
compose-test: setup  ## Run compose.yaml with several workers, and kill some; skipped likewise
	@$(PYTHON) -m tools.containers compose $(ARGS)

.PHONY: containers-test
containers-test: setup  ## Both of them, on one engine with one build; ARGS=--require fails where none can run
	@$(PYTHON) -m tools.containers image compose $(ARGS)

.PHONY: demo
demo: setup  ## Upload real files on private servers and show what came of them; FILES="a b dir"
	@$(PYTHON) -m tools.demo $(FILES)

.PHONY: screenshots
screenshots: setup  ## Take a picture of each page of the console into .scratch/screenshots; ARGS=--readme
	@$(PYTHON) -m tools.screenshots $(ARGS)

.PHONY: doctor
doctor: setup  ## Probe every S3 server that can be started here; compares the table, ARGS=--write renews it
	@$(PYTHON) -m tools.doctor $(ARGS)

.PHONY: bench
bench: setup  ## Measure; prints a table (and writes JSON with ARGS="--json FILE")
	@$(PYTHON) -m tools.bench $(ARGS)

.PHONY: profile
profile: setup  ## CPU time by layer of one upload, of a rotation's two passes, and of a download
	@$(PYTHON) -m tools.bench --only layers $(ARGS)

.PHONY: fuzz
fuzz: $(UV)  ## Mutate all that comes from outside; ARGS="--only metadata --seconds 60"
	@$(SYNC) --group fuzz
	@$(PYTHON) -m tests.fuzz $(ARGS)

.PHONY: load
load: setup  ## Drain 50,000 uploads by 1, 2 and 4 workers, and with workers and broker restarted
	@$(PYTHON) -m tools.chaos load $(ARGS)

.PHONY: capacity
capacity: setup  ## Say how many processes a load needs; ARGS="--objects 1e9 --hours 24"
	@$(PYTHON) -m tools.chaos capacity $(ARGS)

.PHONY: chaos
chaos: setup  ## Break everything on a schedule, then check every object and message; ARGS="--seed 7"
	@$(PYTHON) -m tools.chaos $(ARGS)

.PHONY: lock
lock: $(UV)  ## Renew uv.lock from pyproject.toml
	@$(UV) lock

.PHONY: clean
clean:  ## Remove the environment, the tools and all caches
	@rm -rf clients/typescript/{dist,node_modules} clients/typescript/tests/runtimes/node_modules examples/node/node_modules
	@rm -rf .venv .venv-oldest .tools .scratch dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find contracts workers tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian's python3 has venv but not ensurepip, which is in python3-venv.
.tools/bin/uv:
	@if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null; \
	  else \
	    echo "uv is missing, and python3-venv to fetch it: install either one" >&2; exit 1; \
	  fi; \
	fi
	@echo "Installing uv, which installs packages, into .tools" >&2
	@rm -rf .tools && python3 -m venv .tools
	@.tools/bin/pip install --quiet --disable-pip-version-check --require-hashes -r .ci/uv.txt
