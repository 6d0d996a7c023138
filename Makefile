# `make quickstart` and `make test` need nothing but Python 3.11 or newer.
PYTHON ?= python3
# Processes that tests run in; a file stays in one of them.
JOBS ?= 2
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart test test-slow test-full test-kernels test-tpu lint clean

quickstart: $(VENV)/installed
	$(BIN)/python -m txl_jax train --config=experiments/quickstart.py \
	  --workdir=runs/quickstart

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'not slow and not full'

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m slow

test-full: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m full

# Interpreting kernels for GPUs needs JAX 0.11 and Python 3.12: PYTHON=...
test-kernels: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n $(JOBS) tests/ops/test_mosaic_attention.py \
	  tests/ops/test_mosaic_relative_attention.py \
	  tests/ops/test_mosaic_dropout.py tests/ops/test_feed_forward.py \
	  tests/ops/test_add_and_norm.py tests/ops/test_projections.py \
	  tests/ops/test_logits.py

# Compiling for TPUs needs their compiler, and no TPU.
test-tpu: $(VENV)/installed-dev
	$(INSTALL) --editable '.[tpu]'
	$(BIN)/python -m pytest -n $(JOBS) -m 'not full' \
	  tests/benchmark/test_plan.py tests/benchmark/test_plan_matrix.py \
	  tests/ops/test_tpu_traffic.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) runs

$(VENV)/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "Python 3.11 or newer is needed; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) --editable '.[dev]'
	@touch $@
