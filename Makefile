# `make` alone lists the targets. Everything runs in .venv, which is created when first needed.
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
DATA ?= $(or $(BLOCKWISE_DATA),data)

.DEFAULT_GOAL := help

.PHONY: help demo report table-demo tables table-flowers102 table-caltech101 table-tf_flowers bench bench-gpu profile test test-all test-gpu fuzz lint format docs clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9_-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Two stamps, so that the demo does not wait for test tools. Each is renewed when pyproject.toml changes.
.venv/.demo: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[demo,report]'
	@touch $@

.venv/.dev: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ .venv/.demo

demo: .venv/.demo ## train every block of EfficientNet-Lite0 and both baselines on digits (two to three minutes)
	$(BIN)/python train.py model=efficientnet_lite0 data=digits block=all

table-flowers102: ## reproduce the paper's table for Oxford Flowers 102: fifteen backbones
table-caltech101: ## the same for Caltech-101
table-tf_flowers: ## the preprint's experiment: five backbones
table-demo: ## a table of small runs: ten minutes on two cores, without a network
table-flowers102 table-caltech101 table-tf_flowers table-demo: table-%: .venv/.demo
	$(BIN)/python experiments/paper/table.py $* --data $(DATA) $(ARGS)

tables: table-flowers102 table-caltech101 table-tf_flowers ## all three (days on one GPU; ARGS='plan=true' shows the cost)

report: .venv/.demo ## write a page of tables, statistics and figures to report/ (RESULTS: folder of the records)
	$(BIN)/blockwise report $(or $(RESULTS),results) --out report

bench: .venv/.demo ## time a sweep against plain and tuned Lightning (5 minutes; FULL=1: hours; DATA: folder of caltech101/)
	$(BIN)/python experiments/speed/bench.py --data $(DATA) $(if $(FULL),--full)

bench-gpu: .venv/.demo ## the same on one NVIDIA GPU, one training step at a time (10 minutes; ARGS='--networks resnet50')
	$(BIN)/python experiments/speed/gpu.py $(ARGS)

profile: .venv/.demo ## show where the time of one training step goes
	$(BIN)/python experiments/speed/profile_step.py model=efficientnet_lite0

# One process per core with one thread each: on networks this small, threads mostly wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

test: .venv/.dev ## run the tests
	$(PYTEST)

test-all: .venv/.dev ## run the slow tests too, with coverage
	$(PYTEST) -m 'slow or not slow' --cov --cov-report=term-missing:skip-covered

test-gpu: .venv/.dev ## run the tests that need an NVIDIA GPU (3 minutes)
	$(PYTEST) tests/gpu $(ARGS)

fuzz: .venv/.dev ## feed 114,000 damaged files, scopes and settings to what reads them (10 minutes)
	BLOCKWISE_FUZZ_EXAMPLES=$(or $(EXAMPLES),6000) $(PYTEST) tests/fuzz $(ARGS)

lint: .venv/.dev ## check style, formatting, types and which modules may import which
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.dev ## fix style and formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: .venv/.dev ## build the documentation site in docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

clean: ## remove .venv, builds and caches; results stay
	rm -rf .venv build dist docs/_build docs/reference/config docs/tutorials/*.ipynb .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
