# Everything that is run on Forebay is run from here, by people and by CI alike. Each target makes the environment itself.
#
#   PYTHON   the interpreter that makes the environment     make PYTHON=python3.13 test
#   VENV     where the environment lies                     make VENV=.venv-3.13 test
#   ARGS     passed on to pytest, or to the benchmark       make test ARGS="-k upload -x"
#   SUITE    which benchmarks `bench` runs: store, loader, build,
#            images, locality, tensors, sockets, placement,
#            slow_replica, records, scale, shuffle          make bench SUITE=loader
#   JOBS     how many processes share the tests             make JOBS=1 test
#   MINUTES  how long a soak strikes; SEED decides its
#            choices, by default a new one                  make soak MINUTES=60 SEED=7

PYTHON  ?= python3
VENV    ?= .venv
SUITE   ?= store
ARGS    ?=
JOBS    ?= $(shell nproc)
MINUTES ?= 10
SEED    ?=

BIN       := $(VENV)/bin
INSTALLED := $(VENV)/installed
SOURCES   := $(wildcard client storenode loader tests examples benchmarks)

.DEFAULT_GOAL := help
.PHONY: help venv demo test check test-cluster test-fault test-e2e soak bench clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The stamp is made last, so an installation that was broken off is begun again.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[node,loader,dev]"
	@touch $@

venv: $(INSTALLED)  ## the environment alone

demo: $(INSTALLED)  ## a cluster of three nodes feeds a training run and loses a node on the way
	$(BIN)/python -m examples.quickstart

test: $(INSTALLED)  ## the quick tests: unit, property and some on real nodes, in about three minutes
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests/unit tests/property tests/cluster -m "not slow" $(ARGS)

check: $(INSTALLED)  ## lint, format, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports

test-cluster: $(INSTALLED)  ## all tests on real nodes, the slow ones too
	$(BIN)/python -m pytest tests/cluster $(ARGS)

test-fault: $(INSTALLED)  ## nodes killed, paused, cut off, filled and damaged
	$(BIN)/python -m pytest tests/fault $(ARGS)

soak: $(INSTALLED)  ## everything breaks at once: make soak MINUTES=10 SEED=1
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

test-e2e: $(INSTALLED)  ## what README shows, run as shown, and docker-compose.yml on an engine
	$(BIN)/python -m pytest tests/e2e $(ARGS)

# As modules: run as scripts they would have their own folder first on the import path, and benchmarks/loader would be the
# package `loader` to all that it imports.
bench: $(INSTALLED)  ## figures: make bench SUITE=store|loader|build|images|locality|tensors|slow_replica|sockets|placement|records|scale|shuffle
	$(BIN)/python -m benchmarks.$(SUITE) $(ARGS)

clean:  ## remove the environment and everything that was generated
	rm -rf $(VENV) .venv-peers benchmarks/results build dist *.egg-info
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
