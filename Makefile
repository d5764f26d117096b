# `make demo` and `make test` need only Python 3.11+, make and git.
# An active virtualenv is used as it is; otherwise .venv is made here.
PYTHON ?= python3
ifdef VIRTUAL_ENV
VENV := $(VIRTUAL_ENV)
else
VENV := .venv
endif
BIN := $(VENV)/bin
STAMP := $(VENV)/.edgekit-installed
DEV_STAMP := $(VENV)/.edgekit-dev-installed

.PHONY: demo install dev check format test bench clean

demo: $(STAMP)
	"$(BIN)/edgekit" demo

install: $(STAMP)

dev: $(DEV_STAMP)

check: $(DEV_STAMP)
	"$(BIN)/ruff" format --check .
	"$(BIN)/ruff" check .
	"$(BIN)/mypy"
	"$(BIN)/lint-imports"
	"$(BIN)/python" scripts/check_sizes.py

format: $(DEV_STAMP)
	"$(BIN)/ruff" format .
	"$(BIN)/ruff" check --fix .

test: $(DEV_STAMP)
	"$(BIN)/python" -m pytest

bench: $(DEV_STAMP)
	"$(BIN)/python" scripts/benchmark.py

clean:
	rm -rf build dist demo-report .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv "$(VENV)"

$(STAMP): pyproject.toml constraints.txt | $(VENV)/bin/python
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch "$@"

$(DEV_STAMP): pyproject.toml constraints.txt | $(VENV)/bin/python
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch "$@" "$(STAMP)"
