# One line for each thing a contributor does. `make demo` and `make test` need python3 >= 3.11 and pip, nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# With `user = true` in the user's own settings, pip installs nothing into an environment.
export PIP_USER := 0

# The plugin distributions, each with what its tests need.
PLUGINS := $(patsubst %/pyproject.toml,%,$(sort $(wildcard plugins/*/pyproject.toml)))
EDITABLE_PLUGINS := $(foreach plugin,$(PLUGINS),--editable '$(plugin)[dev]')

.PHONY: demo cluster test test-postgres test-lowest test-newest test-all lint bench fuzz histories simulate workers mutants e2e fastmcp pictures clean stale

NEW_ENOUGH = import sys; sys.version_info < (3, 11) and sys.exit("pocket_plug needs Python 3.11 or newer, and $(PYTHON) is \
"+ sys.version.split()[0] +". Name another one: make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12")

# Whether an environment is there that must be emptied: its Python is too old or gone, or it was copied or moved here with the
# checkout. Then its commands begin with the path of the other folder, and would run the code there. One without pip, which an
# interrupted `make` or another tool has left, gets it. A folder that is no environment is never emptied.
STALE := $(shell test ! -e $(VENV)/pyvenv.cfg || { $(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null && \
    { test ! -e $(BIN)/pip || grep -Fq '$(abspath $(BIN))/python' $(BIN)/pip; }; } || echo --clear)

$(VENV)/ready: pyproject.toml .ci/constraints.txt $(if $(STALE),stale)
	@$(PYTHON) -c '$(NEW_ENOUGH)'
	$(PYTHON) -m venv $(STALE) $(VENV)
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
	cd examples && '$(abspath $(BIN))/python' -m cluster

# Many tests wait for processes, so pytest uses one worker more than there are processors. Without parallelism: make test JOBS=0
JOBS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
IN_PARALLEL = --numprocesses $(JOBS) --dist worksteal

test: $(VENV)/ready-dev
	$(BIN)/pytest $(IN_PARALLEL)

# The tests with the lowest versions that pyproject.toml allows. Only some: make test-lowest ARGS='tests/telemetry'
test-lowest: .venv-lowest/ready-dev
	PYTEST_ADDOPTS='-p no:anyio' .venv-lowest/bin/pytest $(IN_PARALLEL) $(OLD_WARNINGS) $(ARGS)

# Ignores warnings of old versions about themselves. The plugin of an old anyio is off, also in tests that start pytest.
# If an old DBOS is closed while its queue starts a workflow, it leaves a coroutine that was never awaited.
OLD_WARNINGS = -W 'ignore:You should use `:DeprecationWarning' -W "ignore:coroutine 'execute_dequeued_workflow:RuntimeWarning"

.venv-lowest/ready-dev: pyproject.toml .ci/lowest.py $(PLUGINS:=/pyproject.toml)
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) .ci/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check --constraint .venv-lowest/constraints.txt \
	    --editable '.[otlp,dev]' $(EDITABLE_PLUGINS)
	touch $@

# The tests with the newest versions available now, without .ci/constraints.txt.
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

# Tests the PostgreSQL plugin with another version of the server than the wheel's: make test-postgres BINARIES=/usr/lib/postgresql/15/bin
BINARIES ?= $(lastword $(sort $(wildcard /usr/lib/postgresql/*/bin)))
test-postgres: $(VENV)/ready-dev
	POCKET_PLUG_POSTGRES=$(BINARIES) $(BIN)/pytest plugins/pocket-plug-postgres $(ARGS)

# Decodes a million hostile records; `make test` tries a few thousand. Fewer: make fuzz CASES=10000
CASES ?= 1000000
fuzz: $(VENV)/ready-dev
	$(BIN)/python tests/crash/hostile_records.py $(CASES)

# Checks the histories of a hundred thousand transactions on all kinds of stacks; `make test` checks a few thousand.
# Fewer, with another seed, on some stacks: make histories TRANSACTIONS=10000 SEED=7 STACKS='memory through'
TRANSACTIONS ?= 100000
SEED ?= 0
histories: $(VENV)/ready-dev
	$(BIN)/python tests/histories/histories.py $(TRANSACTIONS) $(SEED) $(STACKS)

# Simulates worlds of durable runs; `make test` simulates a few hundred. A number of worlds: make simulate SEEDS=2000. A range of
# seeds: SEEDS=1000-2000. One seed, with its history: SEED=17. Checks that planted faults are found: make simulate ARGS=--planted SEEDS=2600
SEEDS ?= 2000
simulate: $(VENV)/ready-dev
	$(BIN)/python -m tests.simulation $(if $(filter command%,$(origin SEED)),=$(SEED),$(SEEDS)) $(ARGS)

# Kills and stops workers at 200 moments; `make test` has a few. Other numbers: make workers SEED=7 RUNS=60 MOMENTS=50.
# Over a server, which is also killed and stopped: make workers OVER=postgres (or redis). With the effects on Dask: THROUGH=dask
RUNS ?= 300
MOMENTS ?= 200
OVER ?= sqlite
workers: $(VENV)/ready-dev
	$(BIN)/python tests/crash/workers.py $(SEED) $(RUNS) $(MOMENTS) $(OVER) $(THROUGH)

# Makes some hundred small mutations of the core, and lists those that no test notices:
# make mutants ARGS='--seed 1 --count 300 --only store/views'
mutants: $(VENV)/ready-dev
	$(BIN)/python -m tests.mutants $(ARGS)

# Only some rows, with fewer repetitions: make bench ARGS='--only store --quick'
bench: .venv-bench/ready
	.venv-bench/bin/python -m tests.bench $(ARGS)

.venv-bench/ready: pyproject.toml .ci/constraints.txt tests/bench/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt \
	    --editable . --requirement tests/bench/requirements.txt
	touch $@

# Tests with real servers and a real browser. Needs the Debian packages chromium, npm and prometheus; downloads newer servers, and
# some 2 GB from PyPI. Only some: make e2e ARGS='-k phoenix'
e2e: .venv-e2e/ready .venv-e2e-phoenix/ready .venv-e2e-mlflow/ready .venv-e2e-debian/ready
	.venv-e2e/bin/pytest tests/e2e $(ARGS)

# The same, and makes the pictures in docs/pictures again.
pictures: ARGS += --pictures
pictures: e2e

# The requirements of the servers may be incompatible with ours, so each has its own venv.
.venv-e2e/ready: pyproject.toml .ci/constraints.txt tests/e2e/requirements.txt plugins/pocket-plug-openinference/pyproject.toml
	$(PYTHON) -m venv .venv-e2e
	.venv-e2e/bin/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt \
	    --editable '.[otlp]' --editable 'plugins/pocket-plug-openinference[dev]' --requirement tests/e2e/requirements.txt
	npm install --silent --no-save --prefix .venv-e2e axe-core@4.14.1
	touch $@

# Prometheus 3 and VictoriaMetrics, from Debian unstable.
.venv-e2e-debian/ready: tests/e2e/debian.py
	rm -rf $(@D)
	$(PYTHON) tests/e2e/debian.py $(@D) sid prometheus victoria-metrics
	touch $@

.venv-e2e-%/ready: tests/e2e/requirements-%.txt
	$(PYTHON) -m venv .venv-e2e-$*
	.venv-e2e-$*/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

# Tests FastMCP, in memory, over a store of the key-value plugin. It requires newer versions than .ci/constraints.txt has.
fastmcp: .venv-fastmcp/ready
	.venv-fastmcp/bin/pytest plugins/pocket-plug-keyvalue/tests/e2e $(ARGS)

.venv-fastmcp/ready: pyproject.toml plugins/pocket-plug-keyvalue/pyproject.toml plugins/pocket-plug-keyvalue/tests/e2e/requirements.txt
	$(PYTHON) -m venv .venv-fastmcp
	.venv-fastmcp/bin/pip install --quiet --disable-pip-version-check --editable . \
	    --editable plugins/pocket-plug-keyvalue --requirement plugins/pocket-plug-keyvalue/tests/e2e/requirements.txt
	touch $@

# The tests with each installed Python. Each is started to find out: pyenv has shims also for versions that aren't installed.
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
