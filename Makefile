# What people guess: make demo, make test. `make help` lists the rest.
# Every target sets up what it needs and is quick the second time, also without a network.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest -q

.DEFAULT_GOAL := help
.PHONY: help setup mosquitto demo test test-slow lint format bench docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 16

setup: $(STAMP) mosquitto ## create .venv with everything in it, and find Mosquitto

# llama-cpp-python is compiled once (about 4 minutes on 2 cores); pip keeps the wheel.
$(STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV) (the first time takes some minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "SLED needs Python 3.11 or later: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]'
	@touch $@

mosquitto: ## install Mosquitto with the system's package manager if it is missing
	@bash broker_config/ensure_mosquitto.sh

demo: setup ## private broker, verifier, one device, one chat, all on this machine
	@$(BIN)/sled demo

test: setup ## lint and all tests but the slow ones
	@$(MAKE) --no-print-directory lint
	@$(PYTEST)

test-slow: setup ## the tests that take minutes
	@$(PYTEST) -m slow

lint: $(STAMP) ## style, types and the direction of imports
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache > $(VENV)/lint-imports.txt || { cat $(VENV)/lint-imports.txt; exit 1; }

format: $(STAMP) ## rewrite the code in the project's style
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

bench: setup ## the benchmark of a round's parts; docs/benchmarks.md lists the others
	@$(BIN)/python -m bench.round_breakdown

docs: $(STAMP) ## write docs/cli.md and mosquitto.conf anew
	@$(BIN)/python -m cli.reference > docs/cli.md
	@$(BIN)/python -c 'from broker_config.production import render_production; print(render_production(), end="")' > mosquitto.conf

clean: ## remove .venv and everything that was built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
