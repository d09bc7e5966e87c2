# One line for each thing a contributor does. `make demo` and `make test` need python3 >= 3.11 and pip, nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test lint bench fuzz histories e2e pictures test-all clean

$(VENV)/ready: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[otlp]'
	touch $@

$(VENV)/ready-dev: $(VENV)/ready plugins/pocket-plug-compress/pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt \
	    --editable '.[otlp,dev]' --editable 'plugins/pocket-plug-compress[zstd]'
	touch $@

demo: $(VENV)/ready
	$(BIN)/pocket-plug run examples/census --trace

test: $(VENV)/ready-dev
	$(BIN)/pytest

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy pocket_plug examples tests/typing
	$(BIN)/pyright

# A million hostile records, of which `make test` tries a few thousand. Fewer: make fuzz CASES=10000
CASES ?= 1000000
fuzz: $(VENV)/ready-dev
	$(BIN)/python tests/crash/hostile_records.py $(CASES)

# A hundred thousand transactions on all kinds of stacks, of which `make test` tries a few thousand.
# Fewer, others, of some stacks: make histories TRANSACTIONS=10000 SEED=7 STACKS='memory through'
TRANSACTIONS ?= 100000
SEED ?= 0
histories: $(VENV)/ready-dev
	$(BIN)/python tests/histories/histories.py $(TRANSACTIONS) $(SEED) $(STACKS)

# Some rows, and in a hurry: make bench ARGS='--only store --quick'
bench: .venv-bench/ready
	.venv-bench/bin/python -m tests.bench $(ARGS)

.venv-bench/ready: pyproject.toml .ci/constraints.txt tests/bench/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt \
	    --editable . --requirement tests/bench/requirements.txt
	touch $@

# Against real servers and a real browser, by the Debian packages chromium and prometheus and some 2 GB from PyPI.
# Some of it: make e2e ARGS='-k phoenix'
e2e: .venv-e2e/ready .venv-e2e-phoenix/ready .venv-e2e-mlflow/ready
	.venv-e2e/bin/pytest tests/e2e $(ARGS)

# The same, and docs/pictures is taken anew.
pictures: ARGS += --pictures
pictures: e2e

# The servers have requirements that need not go with ours: a venv for each.
.venv-e2e/ready: pyproject.toml .ci/constraints.txt tests/e2e/requirements.txt
	$(PYTHON) -m venv .venv-e2e
	.venv-e2e/bin/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt \
	    --editable '.[otlp]' --requirement tests/e2e/requirements.txt
	touch $@

.venv-e2e-%/ready: tests/e2e/requirements-%.txt
	$(PYTHON) -m venv .venv-e2e-$*
	.venv-e2e-$*/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

test-all:
	@for python in python3.11 python3.12 python3.13; do \
	    $$python -c '' 2>/dev/null || continue; \
	    $(MAKE) test PYTHON=$$python VENV=.venv-$$python || exit 1; \
	done

clean:
	rm -rf .venv .venv-* build dist .pocket_plug
