# Targets that developers and CI share. PYTHON: the interpreter the virtual environment is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo setup lint type test test-all docs bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sigak needs Python 3.11 or later; say which with make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (the first time some minutes: PyTorch is large)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,export,log,video]"
	@touch $@

demo: setup
	@$(BIN)/python -m sigak.demo

lint: setup
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports

type: setup
	@$(BIN)/mypy

test: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs

# Slow tests too, and those that read the real data named by SIGAK_DATA.
test-all: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -m "slow or data or not slow"

# The page of all networks is written from the tables; then every page is checked.
docs: setup
	@$(BIN)/python -m sigak.catalogue docs
	@$(BIN)/python -m pytest -q tests/test_docs.py

bench: setup
	@echo "see benchmarks/README.md: peers live in their own virtual environment"

clean:
	@rm -rf $(VENV) build dist src/*.egg-info
