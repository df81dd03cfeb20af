# Two commands: `make run` makes the default experiment, `make test` checks the project.
PYTHON ?= python3.11
CORES ?= 2
BIN := .venv/bin

.PHONY: run test lint pin

run: .venv/installed
	$(BIN)/snakemake --cores $(CORES)

test: .venv/installed lint
	$(BIN)/pytest -n $(CORES)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint

# Writes down the versions that are installed; run the tests before committing them.
pin: .venv/installed
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu//' > requirements.txt

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	touch $@
