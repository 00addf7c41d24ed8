# `make` alone lists the targets. Everything runs in .venv, which is made when first needed.
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
DATA ?= $(or $(BLOCKWISE_DATA),data)

.DEFAULT_GOAL := help

.PHONY: help demo report table-demo tables table-flowers102 table-caltech101 table-tf_flowers bench profile test test-all lint format clean

help: ## list these targets
	@grep -hE '^[a-z0-9_-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

# Two stamps, so that the demo need not wait for test tools; each is renewed when the dependencies change.
.venv/.demo: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[demo,report]'
	@touch $@

.venv/.dev: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ .venv/.demo

demo: .venv/.demo ## train every block of EfficientNet-Lite0 on digits, beside both baselines (about a minute)
	$(BIN)/python train.py model=efficientnet_lite0 data=digits block=all

PAPER := $(BIN)/python train.py -m --config-dir experiments
# the table of what is recorded, also where some jobs have failed; a plan records nothing
TABLE = status=$$?; $(if $(findstring plan=true,$(ARGS)),exit $$status;) $(BIN)/blockwise table results/paper/$(1) --backbones \
	--out experiments/paper/results/$(1).md --out experiments/paper/results/$(1).csv && exit $$status

table-flowers102: ## reproduce the paper's table of Oxford Flowers 102: fifteen backbones
table-caltech101: ## the same of Caltech-101
table-tf_flowers: ## the preprint's experiment: five backbones
table-flowers102 table-caltech101 table-tf_flowers: table-%: .venv/.demo
	@$(PAPER) +paper=$* data.root=$(if $(filter tf_flowers,$*),$(DATA)/flower_photos,$(DATA)) $(ARGS); $(call TABLE,$*)

tables: table-flowers102 table-caltech101 table-tf_flowers ## all three (days on one GPU; ARGS='plan=true': what it takes)

table-demo: .venv/.demo ## the same table for what two cores can do in ten minutes, without a network
	@$(PAPER) +paper=demo model=efficientnet_lite0 data=digits; one=$$?; \
	$(PAPER) +paper=demo model=timm model.name=test_resnet,test_efficientnet model.pretrained=false data=digits \
		data.image_size=32 partition.num_blocks=8 || one=1; \
	if [ -d $(DATA)/caltech101 ]; then $(PAPER) +paper=demo model=efficientnet_lite0 data=caltech101 data.root=$(DATA) \
		data.image_size=96 data.train_per_class=5 data.val_per_class=1 data.test_per_class=2 seed=0 || one=1; fi; \
	(exit $$one); $(call TABLE,demo)

report: .venv/.demo ## write a page of tables, statistics and figures to report/ (RESULTS: where the records are)
	$(BIN)/blockwise report $(or $(RESULTS),results) --out report

bench: .venv/.demo ## time a sweep against plain and tuned Lightning (5 minutes; FULL=1: hours; DATA: holds caltech101/)
	$(BIN)/python experiments/speed/bench.py --data $(DATA) $(if $(FULL),--full)

profile: .venv/.demo ## show where the time of one training step goes
	$(BIN)/python experiments/speed/profile_step.py model=efficientnet_lite0

# a process a core, and one thread for each: two threads on networks this small wait for one another
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8

test: .venv/.dev ## run the tests
	$(PYTEST)

test-all: .venv/.dev ## run the slow tests too, with coverage
	$(PYTEST) -m 'slow or not slow' --cov --cov-report=term-missing:skip-covered

lint: .venv/.dev ## check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/.dev ## mend style and formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove what is built and cached; results stay
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
