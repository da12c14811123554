# Targets a newcomer needs; `make` alone lists them. Everything lives in .venv and other folders
# with a dot that git ignores.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# setuptools warns at length that editable installs of this kind are experimental.
pip = PYTHONWARNINGS=ignore $(1)/bin/python -m pip --disable-pip-version-check --quiet
SOURCES := core instrumentation processors exporters

# The editable install is a tree of links: a file that comes or goes needs a new one.
modules := $(shell find $(SOURCES) -type f ! -path '*/__pycache__/*' | LC_ALL=C sort)
names := $(shell echo $(modules) | cksum | cut -d' ' -f1)
installed := $(VENV)/.installed
linked := $(VENV)/.linked-$(names)
ours := .venv-bench/.installed
stock := .venv-stock/.installed
spark := .venv-spark/.installed
spark35 := .venv-spark35/.installed

.DEFAULT_GOAL := help
.PHONY: help setup link demo demo-spark test test-spark test-all lint format faults faults-stock
.PHONY: bench bench-spark clean test-spark4 test-spark35

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST)

setup: $(installed) $(linked)  ## Make .venv with everything pinned (quick the second time)

$(installed): pyproject.toml constraints.txt
	@echo "setting up $(VENV) from constraints.txt: a minute or two, once"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call pip,$(VENV)) install -c constraints.txt pip setuptools
	$(call pip,$(VENV)) install -c constraints.txt --no-build-isolation --group dev -e '.[pandas,requests]'
	rm -f $(VENV)/.linked-*
	touch $(linked) $@

$(linked): $(installed)
	test -e $@ || $(call pip,$(VENV)) install --no-deps --no-build-isolation -e .
	rm -f $(VENV)/.linked-*
	touch $@

link: $(linked)  ## After a module was added or removed: link it into the editable install

demo: setup  ## Run a real pipeline under stagewatch and print its trace and report
	$(BIN)/python -m examples.demo

demo-spark: setup $(spark)  ## The same flights in PySpark: its trace, and what could be better; needs Java
	.venv-spark/bin/python -m examples.demo_spark

test: setup  ## Run the tests
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-spark: test-spark4 test-spark35  ## Run the tests with a real Spark, 4.x and then 3.5; needs Java

test-spark4: setup $(spark)
	.venv-spark/bin/python -m pytest tests/spark -o cache_dir=.venv-spark/.pytest_cache $(ARGS)

test-spark35: setup $(spark35)
	.venv-spark35/bin/python -m pytest tests/spark -o cache_dir=.venv-spark35/.pytest_cache $(ARGS)

test-all: test test-spark  ## All tests there are

lint: setup  ## Style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## Format the code and sort its imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Benchmarks compare two environments that hold the same but for one distribution: ours, installed
# as users have it, and opentelemetry-distro, which never stands beside ours (they would compete).
$(ours): constraints.txt pyproject.toml $(modules)
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	rm -rf build/lib build/bdist.*
	$(call pip,.venv-bench) install -c constraints.txt pip setuptools
	$(call pip,.venv-bench) install -c constraints.txt --no-build-isolation '.[requests]'
	$(call pip,.venv-bench) install --no-deps --force-reinstall --no-build-isolation .
	touch $@

$(stock): constraints.txt benchmarks/stock.txt
	test -x .venv-stock/bin/python || $(PYTHON) -m venv .venv-stock
	$(call pip,.venv-stock) install -c constraints.txt pip setuptools
	$(call pip,.venv-stock) install -c constraints.txt -r benchmarks/stock.txt
	touch $@

# Environments with a Spark; the link tree that `setup` keeps is theirs, too.
$(spark): pyproject.toml constraints.txt
	@echo "setting up .venv-spark from constraints.txt: a minute or two, once"
	test -x .venv-spark/bin/python || $(PYTHON) -m venv .venv-spark
	$(call pip,.venv-spark) install -c constraints.txt pip setuptools
	$(call pip,.venv-spark) install -c constraints.txt --no-build-isolation --group dev -e '.[pandas,requests]' 'pyspark[sql,connect]'
	touch $@

$(spark35): pyproject.toml constraints.txt constraints-spark35.txt
	@echo "setting up .venv-spark35 from constraints-spark35.txt: a minute or two, once"
	test -x .venv-spark35/bin/python || $(PYTHON) -m venv .venv-spark35
	awk -F== 'FNR == NR { taken[$$1] } FNR == NR || !($$1 in taken)' constraints-spark35.txt constraints.txt > .venv-spark35/constraints.txt
	$(call pip,.venv-spark35) install -c .venv-spark35/constraints.txt pip setuptools
	$(call pip,.venv-spark35) install -c .venv-spark35/constraints.txt --no-build-isolation --group dev -e '.[pandas,requests]' 'pyspark[sql]'
	touch $@

faults: setup  ## Every way a job can end or hang, in three set-ups, and what is known of it (minutes)
	$(BIN)/python -m tests.faults $(ARGS)

faults-stock: setup $(stock)  ## The same jobs under the stock SDK
	$(BIN)/python -m tests.faults --stock $(ARGS)

bench: setup $(ours) $(stock)  ## Measure the numbers of the README (about ten minutes)
	$(BIN)/python -m benchmarks $(ARGS)

bench-spark: setup $(spark)  ## Measure what Spark jobs pay for being watched (about half an hour)
	.venv-spark/bin/python -m benchmarks $(or $(ARGS),spark spark_executors)

clean:  ## Remove what was built, measured and cached (the virtual environments stay)
	rm -rf build dist *.egg-info .demo .bench .faults .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -f $(VENV)/.linked-*
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
