# Two commands: `make run` makes the default experiment, `make test` checks the project.
PYTHON ?= python3.11
CORES ?= 2
BIN := .venv/bin

# pytest leaves tests marked slurm out unless told otherwise.
.PHONY: run plan ledger test test-slurm lint pin schema docs

# Another experiment: make run CONFIG=experiments/smollm2.yaml
CONFIG ?= config.yaml
run: .venv/installed
	$(BIN)/snakemake --cores $(CORES) --configfile $(CONFIG)

# What the experiment will cost, from a few steps of each model; and after it, what it did cost.
plan ledger: .venv/installed
	$(BIN)/snakemake $@ --cores $(CORES) --configfile $(CONFIG)
	cat results/$$(sed -n 's/^experiment: *["'"'"']\{0,1\}\([A-Za-z0-9_.-]*\).*/\1/p' $(CONFIG))/$@.txt

test: .venv/installed .venv/peer lint docs
	$(BIN)/pytest -n $(CORES)

# The cluster profile on a real SLURM, which is installed where that is possible.
test-slurm: .venv/installed
	-command -v slurmctld || PATH=$$PATH:/usr/sbin command -v slurmctld || \
		(apt-get update -qq && apt-get install -y -qq slurmctld slurmd slurm-client munge)
	$(BIN)/pytest -n 0 -m slurm tests/slurm

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint

# The site, in docs/_build/html; any warning is an error.
docs: .venv/installed
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# After a change in src/lethe/config/: what editors complete keys from.
schema: .venv/installed
	$(BIN)/python -m lethe.config.schema schemas/experiment.schema.json

# Writes down the versions that are installed; run the tests before committing them.
pin: .venv/installed
	$(BIN)/pip freeze --exclude-editable --exclude scikit-surprise | sed 's/+cpu//' > requirements.txt

# The library itself is for notebooks and the command lethe; the workflow finds it without.
.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

# Some tests compare with scikit-surprise; where it cannot be built they skip and say so.
.venv/peer: .venv/installed
	-$(BIN)/pip install --quiet scikit-surprise==1.1.5
	touch $@
