# Two commands are all a fresh machine needs: `make train` and `make test`.
#   make train NPROC=4 ARGS="--train.epochs 3"   other ranks, other options

PYTHON ?= python3
NPROC ?= 2
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
# Ranks share the cores of the machine.
export OMP_NUM_THREADS ?= $(shell cores=$$(nproc 2>/dev/null || echo 1); threads=$$((cores / $(NPROC))); echo $$((threads > 0 ? threads : 1)))

.PHONY: train test test-unit test-slow test-slurm gpu lint format clean

train: $(VENV)/.train
	$(BIN)/convoy train --nproc $(NPROC) --config configs/mnist.yaml $(ARGS)
	@command -v convoy >/dev/null || echo 'Here: source $(VENV)/bin/activate, and convoy is a command.'

# Most of a test's time is the start of its processes: two files side by side.
test: $(VENV)/.develop
	$(BIN)/python -m pytest -m "not slow and not slurm" --numprocesses 2 --dist loadfile $(ARGS)

# The inner loop: what starts no process (rank, data worker, command), in about a minute.
test-unit: $(VENV)/.develop
	$(BIN)/python -m pytest -m "not process and not slow and not slurm" --numprocesses 2 --dist loadfile $(ARGS)

test-slow: $(VENV)/.develop
	$(BIN)/python -m pytest -m "slow and not slurm" --numprocesses 2 --dist loadfile $(ARGS)

# Skips itself, and says so, where slurmctld is not on the PATH.
test-slurm: $(VENV)/.develop
	$(BIN)/python -m pytest -m slurm $(ARGS)

# On a machine with a GPU, lent for minutes: the Python that is there will do, nothing is installed.
gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/run.py gpu $(ARGS)

lint: $(VENV)/.develop
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.develop
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# A stamp is younger than the files that say what to install, or pip runs again.
$(VENV)/.train: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.develop: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,lint]'
	@touch $@ $(VENV)/.train

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is too old, expected Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
