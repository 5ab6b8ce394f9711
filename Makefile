# make sweep    set up everything and run the main job on the quickstart desk
# make test     set up everything and run the tests
# make check    formatting, lint and types
# make format   rewrite the sources in the project's format
# make bench    race the engine against hand-written ones: minutes, also make bench-full
# make lock     resolve requirements.lock and requirements-bench.lock anew (needs uv)
#
# A machine needs make and a Python from 3.11 to 3.14 with its venv module; PYTHON=/path/to/python chooses one,
# otherwise the newest of those on the PATH is taken. Everything is installed into .venv, from hashes.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?=
CONFIG ?= configs/quickstart.toml
WORKERS ?= 2
PYTEST_ARGS ?=
UV ?= uv

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
BENCH_ARGS ?=

# Compiled programs outlive the process: a second run starts with the first run's code.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: help setup sweep test check format bench bench-full lock

help:
	@sed -n 's/^# \{0,1\}\(make .*\)/\1/p' Makefile

setup: $(STAMP)

# Installed again only when the lock or the project's metadata changes.
$(STAMP): requirements.lock pyproject.toml
	@suitable() { "$$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1; }; \
	if ! { suitable $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1; }; then \
	  python=; \
	  for candidate in $(if $(PYTHON),"$(PYTHON)",python3.14 python3.13 python3.12 python3.11 python3 python); do \
	    if suitable "$$candidate"; then python=$$candidate; break; fi; \
	  done; \
	  if [[ -z $$python ]]; then \
	    name=$(or $(PYTHON),python3); \
	    found=$$("$$name" --version 2>/dev/null) || found="no $$name"; \
	    echo "crossmargin needs Python 3.11 to 3.14 with its venv module; found: $$found." >&2; \
	    echo "Install one (on Debian and Ubuntu also the package python3-venv), or name it: make PYTHON=/path/to/python3" >&2; \
	    exit 2; \
	  fi; \
	  echo "setting up $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv --clear $(VENV); \
	fi
	@echo "installing requirements.lock (about 1 GB the first time)"
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

sweep: $(STAMP)
	@$(BIN)/python -P -m aggregator sweep $(CONFIG)

test: $(STAMP)
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(PYTEST_ARGS)

check: $(STAMP)
	@$(BIN)/python -m ruff format --check
	@$(BIN)/python -m ruff check
	@$(BIN)/python -m mypy

format: $(STAMP)
	@$(BIN)/python -m ruff check --select I --fix
	@$(BIN)/python -m ruff format

# The peers of the race are no part of the product: they come on top, from hashes of their own.
$(BENCH_STAMP): $(STAMP) requirements-bench.lock
	@echo "installing requirements-bench.lock (about 450 MB the first time)"
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements-bench.lock
	@touch $@

bench: $(BENCH_STAMP)
	@$(BIN)/python -m benchmarks.race $(BENCH_ARGS)

bench-full: $(BENCH_STAMP)
	@$(BIN)/python -m benchmarks.race --rounds 15 --growth-rounds 7 $(BENCH_ARGS)

lock:
	@$(UV) pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --quiet --upgrade \
	  --output-file requirements.lock
	@$(UV) pip compile pyproject.toml --group bench --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --quiet --upgrade \
	  --constraints requirements.lock --output-file requirements-bench.lock
