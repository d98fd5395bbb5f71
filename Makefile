# Each target sets up by itself what it needs: `make help` lists them.
SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
SUITES ?= trixie forky
TESTBED := $(PYTHON) -m tests.testbed

.PHONY: help demo check test test-all unit e2e soak lint bench docs plots testbed-up testbed-down wheel deb rpm clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: prepared ## show the whole chain: CE, route, demand, plan, pilot, job, on real HTCondor and Slurm
	$(PYTHON) -m tests.e2e.demo

check: lint unit ## what is to be well before each commit: a minute and a half

test: unit e2e ## all tests; the testbed's need root (SUITES=trixie: one suite only)

test-all: export HTCEBRIDGE_ALL := 1
test-all: unit e2e ## every test on every suite, also where one suite is enough

unit: prepared ## the fast tests
	$(PYTHON) -m pytest tests/unit -q -n 4 --dist worksteal

e2e: prepared ## the whole chain on a testbed of each suite, side by side
	@scripts/e2e $(PYTHON) $(SUITES)

soak: prepared ## mixed load on short-lived pilots: no job is killed by walltime (SUITE=trixie MINUTES=60)
	$(PYTHON) -m tests.e2e.soak $(or $(SUITE),trixie) $(or $(MINUTES),60)

lint: prepared ## ruff, mypy, the floors, shellcheck
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo
	scripts/shell-scripts | xargs -0 shellcheck

bench: prepared ## the benchmarks, on a testbed
	$(PYTHON) -m benchmarks

docs: prepared ## the docs as pages, in build/site; a dead link is an error
	$(PYTHON) docs/generate.py
	$(VENV)/bin/mkdocs build --quiet --strict
	@echo "build/site/index.html"

plots: prepared ## the plots in docs/images, with the commands of docs/how-it-decides.md
	grep -hE '^htcebridge simulate .*--plot docs/images/' docs/*.md | sed 's|^|$(VENV)/bin/|' | bash -ex

testbed-up: prepared ## start a testbed (SUITE=trixie NODES=2 NAME=...)
	$(TESTBED) up --suite $(or $(SUITE),trixie) --nodes $(or $(NODES),2) $(if $(NAME),--name $(NAME))

testbed-down: prepared ## end the testbed (NAME=... where several run)
	$(TESTBED) down $(if $(NAME),--name $(NAME))

wheel: prepared ## dist/: the wheel, with man pages and shell completion
	PYTHON=$(PYTHON) packaging/build wheel

deb: prepared ## dist/: the Debian package (DEBIAN=13 PYTHON_OF_IT=3.13: for another release than this machine's)
	PYTHON=$(PYTHON) packaging/build deb $(if $(DEBIAN),--debian $(DEBIAN)) $(if $(PYTHON_OF_IT),--python $(PYTHON_OF_IT))

rpm: prepared ## dist/: the RPM for an Enterprise Linux (EL=9 PYTHON_OF_IT=3.12)
	PYTHON=$(PYTHON) packaging/build rpm --el $(or $(EL),9) $(if $(PYTHON_OF_IT),--python $(PYTHON_OF_IT))

.PHONY: prepared
prepared:
	@scripts/prepare $(VENV)

clean: ## remove what make has made in this checkout
	rm -rf $(VENV) build dist *.egg-info
