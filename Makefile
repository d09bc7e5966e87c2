# One line for each thing a contributor does. `make demo` and `make test` need python3 >= 3.11 and pip, nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# The plugin distributions, each with what its tests need.
PLUGINS := $(patsubst %/pyproject.toml,%,$(sort $(wildcard plugins/*/pyproject.toml)))
EDITABLE_PLUGINS := $(foreach plugin,$(PLUGINS),--editable '$(plugin)[dev]')

.PHONY: demo cluster test test-postgres test-lowest test-newest test-all lint bench fuzz histories simulate workers mutants e2e fastmcp pictures clean

$(VENV)/ready: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[otlp]'
	touch $@

$(VENV)/ready-dev: $(VENV)/ready $(PLUGINS:=/pyproject.toml)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt \
	    --editable '.[otlp,config-file,dev,lint]' $(EDITABLE_PLUGINS)
	touch $@

demo: $(VENV)/ready
	$(BIN)/pocket-plug run examples/census --trace

# A PostgreSQL server, a Dask cluster and workers on this machine, some of which are killed in the middle.
cluster: $(VENV)/ready-dev
	cd examples && $(abspath $(BIN))/python -m cluster

# Many tests wait for processes, so there is one more at work than the machine has processors. One after the other: make test JOBS=0
JOBS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
IN_PARALLEL = --numprocesses $(JOBS) --dist worksteal

test: $(VENV)/ready-dev
	$(BIN)/pytest $(IN_PARALLEL)

# With the lowest versions that pyproject.toml allows. Some of it: make test-lowest ARGS='tests/telemetry'
test-lowest: .venv-lowest/ready-dev
	PYTEST_ADDOPTS='-p no:anyio' .venv-lowest/bin/pytest $(IN_PARALLEL) $(OLD_WARNINGS) $(ARGS)

# What old versions say of themselves; it is no news of ours. Tests that start pytest have no plugin of an old anyio either.
# DBOS' old one, closed while its queue begins a workflow, leaves that coroutine behind.
OLD_WARNINGS = -W 'ignore:You should use `:DeprecationWarning' -W "ignore:coroutine 'execute_dequeued_workflow:RuntimeWarning"

.venv-lowest/ready-dev: pyproject.toml .ci/lowest.py $(PLUGINS:=/pyproject.toml)
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) .ci/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check --constraint .venv-lowest/constraints.txt \
	    --editable '.[otlp,dev]' $(EDITABLE_PLUGINS)
	touch $@

# With the newest versions that there are right now, whatever .ci/constraints.txt says.
test-newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
	    --editable '.[otlp,config-file,dev]' $(EDITABLE_PLUGINS)
	.venv-newest/bin/pytest $(IN_PARALLEL) $(ARGS)

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy pocket_plug plugins/*/src examples tests/typing
	$(BIN)/pyright

# The PostgreSQL plugin with another version of the server than the wheel's: make test-postgres BINARIES=/usr/lib/postgresql/15/bin
BINARIES ?= $(lastword $(sort $(wildcard /usr/lib/postgresql/*/bin)))
test-postgres: $(VENV)/ready-dev
	POCKET_PLUG_POSTGRES=$(BINARIES) $(BIN)/pytest plugins/pocket-plug-postgres $(ARGS)

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

# Simulated worlds of durable runs, of which `make test` plays a few hundred: a number of them, a range of seeds, or one, with
# its history: make simulate SEEDS=2000, SEEDS=1000-2000, SEEDS==17. Are planted faults found? make simulate ARGS=--planted SEEDS=1000
SEEDS ?= 2000
simulate: $(VENV)/ready-dev
	$(BIN)/python -m tests.simulation $(SEEDS) $(ARGS)

# Workers that are killed and stopped at so many moments, of which `make test` has a few. Others: make workers SEED=7 RUNS=60 MOMENTS=50.
# Over a server, which is killed and stopped too: make workers OVER=postgres (or redis); with the effects on Dask, the same: THROUGH=dask
RUNS ?= 300
MOMENTS ?= 200
OVER ?= sqlite
workers: $(VENV)/ready-dev
	$(BIN)/python tests/crash/workers.py $(SEED) $(RUNS) $(MOMENTS) $(OVER) $(THROUGH)

# Breaks the core in some hundred small ways and lists what no test notices: make mutants ARGS='--seed 1 --count 300 --only store/views'
mutants: $(VENV)/ready-dev
	$(BIN)/python -m tests.mutants $(ARGS)

# Some rows, and in a hurry: make bench ARGS='--only store --quick'
bench: .venv-bench/ready
	.venv-bench/bin/python -m tests.bench $(ARGS)

.venv-bench/ready: pyproject.toml .ci/constraints.txt tests/bench/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt \
	    --editable . --requirement tests/bench/requirements.txt
	touch $@

# Against real servers and a real browser, by the Debian packages chromium, npm and prometheus, newer ones beside them, and some 2 GB from PyPI.
# Some of it: make e2e ARGS='-k phoenix'
e2e: .venv-e2e/ready .venv-e2e-phoenix/ready .venv-e2e-mlflow/ready .venv-e2e-debian/ready
	.venv-e2e/bin/pytest tests/e2e $(ARGS)

# The same, and docs/pictures is taken anew.
pictures: ARGS += --pictures
pictures: e2e

# The servers have requirements that need not go with ours: a venv for each.
.venv-e2e/ready: pyproject.toml .ci/constraints.txt tests/e2e/requirements.txt plugins/pocket-plug-openinference/pyproject.toml
	$(PYTHON) -m venv .venv-e2e
	.venv-e2e/bin/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt \
	    --editable '.[otlp]' --editable 'plugins/pocket-plug-openinference[dev]' --requirement tests/e2e/requirements.txt
	npm install --silent --no-save --prefix .venv-e2e axe-core@4.14.1
	touch $@

# Prometheus 3 and VictoriaMetrics, as Debian's unstable has them.
.venv-e2e-debian/ready: tests/e2e/debian.py
	rm -rf $(@D)
	$(PYTHON) tests/e2e/debian.py $(@D) sid prometheus victoria-metrics
	touch $@

.venv-e2e-%/ready: tests/e2e/requirements-%.txt
	$(PYTHON) -m venv .venv-e2e-$*
	.venv-e2e-$*/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

# FastMCP, in memory, over a store of the key-value plugin. It requires newer versions than we do, and than ours are pinned to.
fastmcp: .venv-fastmcp/ready
	.venv-fastmcp/bin/pytest plugins/pocket-plug-keyvalue/tests/e2e $(ARGS)

.venv-fastmcp/ready: pyproject.toml plugins/pocket-plug-keyvalue/pyproject.toml plugins/pocket-plug-keyvalue/tests/e2e/requirements.txt
	$(PYTHON) -m venv .venv-fastmcp
	.venv-fastmcp/bin/pip install --quiet --disable-pip-version-check --editable . \
	    --editable plugins/pocket-plug-keyvalue --requirement plugins/pocket-plug-keyvalue/tests/e2e/requirements.txt
	touch $@

# The tests with each Python that there is, found by running it: pyenv's shims answer for versions that it has not got.
PYTHONS = 3.11 3.12 3.13 3.14 3.15
test-all:
	@missing=; for version in $(PYTHONS); do \
	    found=; for python in python$$version $(HOME)/.pyenv/versions/$$version.*/bin/python; do \
	        if "$$python" -c '' 2>/dev/null; then found="$$python"; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then missing="$$missing $$version"; continue; fi; \
	    echo "Python $$version: $$found"; \
	    $(MAKE) test PYTHON="$$found" VENV=.venv-python$$version || exit 1; \
	done; \
	if [ -n "$$missing" ]; then echo "not tested, since it was not found: Python$$missing"; fi

clean:
	rm -rf .venv .venv-* build dist .pocket_plug
