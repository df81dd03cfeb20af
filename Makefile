# `make` lists the targets. CONFIG names another experiment, CORES how many cores a run may use:
#   make run CONFIG=experiments/smollm2.yaml CORES=4
PYTHON ?= python3.11
CORES ?= 2
CONFIG ?= config.yaml
SLURM_TESTS ?= tests/slurm
# Every tool runs as `python -m`: the scripts in .venv/bin name the folder that they were made in.
RUN := .venv/bin/python -m

.DEFAULT_GOAL := help
.PHONY: help run plan ledger test test-browser test-slurm slurm chromium lint docs screenshots schema pin

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST) | awk -F ': ' '{printf "make %-14s%s\n", $$1, $$2}'

run: .venv/installed ## run the experiment CONFIG, or continue it
	$(RUN) lethe run $(CONFIG) --cores $(CORES)

plan: .venv/installed ## estimate the cost of CONFIG from a few steps of each model
	$(RUN) lethe run $(CONFIG) plan --cores $(CORES)
	cat "$$($(RUN) lethe.workflow $(CONFIG))/plan.txt"

ledger: .venv/installed ## compare the cost of CONFIG with the plan; an incomplete run is completed first
	$(RUN) lethe run $(CONFIG) ledger --cores $(CORES)
	cat "$$($(RUN) lethe.workflow $(CONFIG))/ledger.txt"

# pytest leaves out tests marked slurm and browser.
test: .venv/installed .venv/peer lint docs ## check the project with lint, docs and all tests
	$(RUN) pytest -n $(CORES) --durations 20

test-slurm: .venv/installed slurm ## test the cluster profile on a real SLURM, and install SLURM if possible
	$(RUN) pytest -n 2 --dist loadfile --durations 10 -m slurm $(SLURM_TESTS)

test-browser: .venv/installed chromium ## test the report in Chromium, and install Chromium if possible
	$(RUN) pytest -n $(CORES) --dist loadfile -m browser tests/browser

slurm:
	-command -v slurmctld || PATH=$$PATH:/usr/sbin command -v slurmctld || \
		(apt-get update -qq && apt-get install -y -qq slurmctld slurmd slurm-client munge)

chromium:
	-command -v chromium || (apt-get update -qq && apt-get install -y -qq chromium)

lint: .venv/installed ## check formats, lint and the rules
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) snakefmt --check Snakefile rules
	$(RUN) snakemake --lint

docs: .venv/installed ## build the site in docs/_build/html; any warning is an error
	$(RUN) sphinx -W --keep-going -q -b html docs docs/_build/html

screenshots: .venv/installed ## take the docs' pictures from the report of the finished run CONFIG
	.venv/bin/python docs/take_screenshots.py "$$($(RUN) lethe.workflow $(CONFIG))/report.html"

schema: .venv/installed ## write the JSON schema after a change in src/lethe/config/
	$(RUN) lethe.config.schema schemas/experiment.schema.json

pin: .venv/installed ## write the installed versions to requirements.txt; run the tests before you commit it
	$(RUN) pip freeze --exclude-editable --exclude scikit-surprise | sed 's/+cpu//' > requirements.txt

# The stamp holds the folder's name. A .venv that was moved or copied is made again: its editable
# install and its scripts would silently use the library of the old folder.
STAMP := $(shell cat .venv/installed 2>/dev/null)
ifneq ($(STAMP),$(CURDIR))
.PHONY: .venv/installed
CLEAR := $(if $(STAMP),$(shell test -L .venv || echo --clear))
endif

# The installed library is for notebooks and the command lethe; the workflow finds its own. Python
# compiles what it imports; to compile all that is installed would take more than a minute.
.venv/installed: requirements.txt
	$(PYTHON) -m venv $(CLEAR) .venv
	$(RUN) pip install --quiet --no-compile --requirement requirements.txt
	$(RUN) pip install --quiet --no-deps --editable .
	echo "$(CURDIR)" > $@

# Some tests compare with scikit-surprise; if it cannot be built, they are skipped.
.venv/peer: .venv/installed
	-$(RUN) pip install --quiet scikit-surprise==1.1.5
	touch $@
