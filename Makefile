# `make quickstart` and `make test` need nothing but Python 3.11 or newer.
PYTHON ?= python3
# Processes that tests run in; a file stays in one of them.
JOBS ?= 2
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart test test-slow test-full lint clean

quickstart: .venv/installed
	$(BIN)/python -m txl_jax train --config=experiments/quickstart.py \
	  --workdir=runs/quickstart

test: .venv/installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'not slow and not full'

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m slow

test-full: .venv/installed-dev
	$(BIN)/python -m pytest -m full

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv runs

.venv/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "Python 3.11 or newer is needed; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) --editable '.[dev]'
	@touch $@
