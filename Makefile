# Targets: make help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
BENCH := shard_writing planning verify_rate profile generation_overhead
NEEDS := pyproject.toml constraints.txt
INSTALL := $(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt

.PHONY: help install quickstart test test-clusters test-slow check docs bench bench-all bench-gpu gpu-study
help:
	@echo "make install     make .venv with mimeo and what it needs (a minute or two the first time)"
	@echo "make quickstart  the main job on embedded real digits: real images -> synthetic shards -> classifiers -> report"
	@echo "make test        the tests"
	@echo "make test-clusters  the tests on real clusters of this machine: jobs, hosts with addresses of their own, an autoscaler"
	@echo "make test-slow   smoke runs of every benchmark, compiled generation and training, a killed search"
	@echo "make check       lint, format and types"
	@echo "make docs        the documentation as a site in site/"
	@echo "make bench       the CPU benchmarks of a quarter of an hour; results go to benchmarks/results"
	@echo "make bench-all   all CPU benchmarks, two hours and a half"
	@echo "make gpu-study   latent against pixel generators on one GPU, 25 minutes; resumes; DATA=folder of cifar10/ and usps/"
	@echo "make bench-gpu   those of one CUDA device, models of published shapes with random weights"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt uv

$(STAMP): $(NEEDS) | $(BIN)/python
	@echo "installing mimeo into $(VENV) ..."
	$(INSTALL) -e .
	@touch $@

$(DEV_STAMP): $(STAMP)
	@echo "installing what the tests need ..."
	$(INSTALL) -e '.[dev]'
	@touch $@

install: $(STAMP)

quickstart: $(STAMP)
	$(BIN)/mimeo quickstart

test: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-clusters: $(DEV_STAMP)
	$(INSTALL) -e '.[cluster]'
	MIMEO_CLUSTER_TESTS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s tests/clusters

test-slow: $(DEV_STAMP)
	MIMEO_SLOW=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/benchmarks tests/chaos/test_killed_search.py \
	  tests/engine/diffusion/families/test_fast.py tests/engine/training/test_loop.py tests/engine/training/matching/test_match_worker.py tests/engine/images/test_catalog.py

check: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	$(INSTALL) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(DEV_STAMP)
	failed=0; for name in $(BENCH); do $(BIN)/python -m benchmarks.$$name || failed=1; done; exit $$failed

bench-all: $(DEV_STAMP)
	failed=0; for file in $$(grep -l '^def main' benchmarks/*.py | grep -v /gpu); do \
	  $(BIN)/python -m benchmarks.$$(basename $$file .py) || failed=1; done; exit $$failed

bench-gpu: $(STAMP)
	for part in sd15 sdxl dit switches scripts; do $(BIN)/python -m benchmarks.gpu --part $$part || exit 1; done

DATA ?= ../shared/data
gpu-study: $(STAMP)
	$(BIN)/python -m benchmarks.gpu_study --data $(DATA)
