# `make` alone lists the targets. Everything runs in .venv, which is made when first needed.
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
DATA ?= $(or $(BLOCKWISE_DATA),data)

.DEFAULT_GOAL := help

.PHONY: help demo bench profile test test-all lint format clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# Two stamps, so that the demo need not wait for test tools; each is renewed when the dependencies change.
.venv/.demo: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

.venv/.dev: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ .venv/.demo

demo: .venv/.demo ## train every block of EfficientNet-Lite0 on digits, beside both baselines (about a minute)
	$(BIN)/python train.py model=efficientnet_lite0 data=digits block=all

bench: .venv/.demo ## time a sweep against plain and tuned Lightning (5 minutes; FULL=1: hours; DATA: holds caltech101/)
	$(BIN)/python experiments/speed/bench.py --data $(DATA) $(if $(FULL),--full)

profile: .venv/.demo ## show where the time of one training step goes
	$(BIN)/python experiments/speed/profile_step.py model=efficientnet_lite0

test: .venv/.dev ## run the tests
	$(BIN)/python -m pytest

test-all: .venv/.dev ## run the slow tests too, with coverage
	$(BIN)/python -m pytest -m 'slow or not slow' --cov --cov-report=term-missing:skip-covered

lint: .venv/.dev ## check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/.dev ## mend style and formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove what is built and cached; results stay
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
