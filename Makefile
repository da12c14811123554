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

.DEFAULT_GOAL := help
.PHONY: help setup link demo test test-all lint format faults faults-stock bench clean

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

test: setup  ## Run the tests
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-all: test  ## All tests there are (today the same as `make test`)

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

faults: setup  ## Every way a job can end or hang, in three set-ups, and what is known of it (minutes)
	$(BIN)/python -m tests.faults $(ARGS)

faults-stock: setup $(stock)  ## The same jobs under the stock SDK
	$(BIN)/python -m tests.faults --stock $(ARGS)

bench: setup $(ours) $(stock)  ## Measure the numbers of the README (about ten minutes)
	$(BIN)/python -m benchmarks $(ARGS)

clean:  ## Remove what was built, measured and cached (the virtual environments stay)
	rm -rf build dist *.egg-info .demo .bench .faults .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -f $(VENV)/.linked-*
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
