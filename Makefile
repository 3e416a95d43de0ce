# Every target sets up what it needs: `make demo` and `make test` each work alone on a machine with Python, git and make.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
EXTRAS ?= dev
TEST_WORKERS ?= 2
VENV := .venv
BIN  := $(VENV)/bin
READY := $(VENV)/.ready
OLDEST := .venv-oldest
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-all test-oldest lint bench wheel clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(READY)  ## virtual environment in .venv (TORCH="torch==..." chooses another build of PyTorch)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "expunge needs Python 3.11 or newer; say which with make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "==> making a virtual environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "==> installing PyTorch ($(TORCH))"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@echo "==> installing expunge[$(EXTRAS)] at the versions of constraints.txt"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $(READY)
	@echo "==> ready: $(BIN)/expunge --help"

demo: $(READY)  ## train, unlearn with three methods, evaluate and compare on the embedded benchmark
	@$(BIN)/expunge demo

test: $(READY)  ## the default test suite, on CPU, without a network
	@echo "==> running the default tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile -m "not slow and not gpu and not network"

test-slow: $(READY)  ## the slow tests: the demo, the README's commands, full golden values
	@echo "==> running the slow tests"
	@$(BIN)/python -m pytest -q -m "slow and not gpu and not network"

test-all: test test-slow  ## both

test-oldest: $(OLDEST)/.ready  ## training, resume, LoRA and evaluation with the oldest versions that pyproject.toml allows
	@echo "==> running with the oldest versions"
	@OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile -m "not slow and not gpu and not network" \
	  tests/training tests/pipelines/test_walk.py tests/evaluation/test_suite.py

$(OLDEST)/.ready: pyproject.toml constraints-oldest.txt
	@echo "==> making a virtual environment in $(OLDEST)"
	@test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e ".[hub,lora,tensorboard]" pytest pytest-xdist
	@touch $@

lint: $(READY)  ## format, lint, types and layers
	@echo "==> ruff"
	@$(BIN)/ruff format --check src tests benchmarks examples
	@$(BIN)/ruff check src tests benchmarks examples
	@echo "==> mypy"
	@$(BIN)/mypy
	@echo "==> import layers"
	@$(BIN)/lint-imports --no-cache

bench: $(READY)  ## the benchmarks: ratios against a named baseline in one run
	@$(BIN)/python -m benchmarks

wheel: $(READY)  ## build the wheel into dist/
	@$(BIN)/python -m build --wheel

clean:  ## remove what the targets made, but not your runs in saves/
	rm -rf $(VENV) $(OLDEST) dist build .mypy_cache .ruff_cache .pytest_cache
