# Everything runs in .venv; `make setup` makes it once, and again when its inputs change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# How many processes run the tests; a file's tests stay together, for they may share a server.
TEST_PROCESSES ?= 2

BENCHMARKS ?= door stage pipeline fresh growth keyed listeners sql_beside

.DEFAULT_GOAL := help
.PHONY: help setup system test-browser demo demo-biodiversity demo-cluster demo-factory test test-presto lint format docs bench bench-cluster clean

help: ## say what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(READY) ## make .venv with the project and its tools, at the versions of constraints.txt

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable . --group dev
	touch $@

demo: $(READY) ## run the game example: events in, counts out (DEMO_EXIT=1 ends by itself)
	$(BIN)/headrace demo $(if $(DEMO_EXIT),--exit)

demo-biodiversity: $(READY) ## follow stand-ins of GBIF, OBIS and iDigBio, and count (DEMO_EXIT=1 ends by itself)
	@$(BIN)/python examples/biodiversity/demo.py $(if $(DEMO_EXIT),--exit)

demo-cluster: $(READY) ## run the game on three Kafka brokers and Spark, all on this machine (DEMO_EXIT=1 ends by itself)
	@$(BIN)/python examples/game/demo_cluster.py $(if $(DEMO_EXIT),--exit)

demo-factory: $(READY) ## tap two streams of a plant for a minute, its server killed twice (DEMO_EXIT=1 ends by itself)
	@$(BIN)/python examples/factory/demo.py $(if $(DEMO_EXIT),--exit)

# Without them the tests that need them are skipped, which pytest says.
SYSTEM := acl nginx-light openssl strace
system: ## install Debian's packages with which some tests test, where one may
	@dpkg --status $(SYSTEM) >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
		apt-get install -qq --yes --no-install-recommends $(SYSTEM) >/dev/null; } || \
		echo "to be had by: apt-get install $(SYSTEM)"

test: $(READY) ## run every test
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile

test-presto: $(READY) ## have Presto read tables as they are written (the first time it downloads 2.1 GB)
	HEADRACE_TEST_PRESTO=1 $(BIN)/python -m pytest tests/engines/test_presto.py

test-browser: $(VENV)/.browser ## walk through the dashboard with Chromium; leaves pictures in build/pictures
	HEADRACE_TEST_BROWSER=1 $(BIN)/python -m pytest tests/browser

$(VENV)/.browser: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt --group browser
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
		apt-get install -qq --yes chromium fonts-dejavu-core >/dev/null; } || \
		{ echo "Chromium is missing: apt-get install chromium fonts-dejavu-core"; exit 1; }
	touch $@

lint: $(READY) ## check style, types and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(READY) ## bring the code into its one format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(READY) ## write docs/reference again
	$(BIN)/python docs/generate.py

bench: $(READY) ## measure; prints a table and a JSON line for each benchmark (QUICK=1: minutes)
	@for name in $(BENCHMARKS); do $(BIN)/python bench/$$name.py $(if $(QUICK),--quick) || exit 1; done
	$(BIN)/python bench/report.py

bench-cluster: $(READY) ## the same on a trial cluster of Kafka and Spark, beside Structured Streaming (QUICK=1)
	@for name in cluster driver; do $(BIN)/python bench/$$name.py $(if $(QUICK),--quick) || exit 1; done
	$(BIN)/python bench/report.py

clean: ## remove everything that is made
	rm -rf $(VENV) build dist bench/results
	rm -rf .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find src tests bench docs examples -name __pycache__ -type d -exec rm -rf {} + 2>/dev/null || true
