# prefanno: everything a person or a CI machine calls. `make` alone lists it.
#
# Settings go through the environment: PREFANNO_PORT=9000 make serve. PYTHON=/path/to/python3 names the Python of .venv.

.DEFAULT_GOAL := help
.PHONY: help serve test check-long lint clean

python := .venv/bin/python

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

serve:  ## set up what is missing, migrate the database, start the server
	@sh scripts/python.sh scripts/prepare.py serve
	@exec $(python) -m prefanno serve

# Tests find the programs of .venv first, and no test may ask the hub.
test check-long lint: export PATH := $(CURDIR)/.venv/bin:$(PATH)
test check-long: export HF_HUB_OFFLINE := 1

# A process for each of two cores, each with whole modules, in order. Torch's threads would wait for each other in turns
# where processes share the cores: a training of three minutes then takes ten.
test: export OMP_NUM_THREADS := 1
test: lint  ## set up what tests need; lint, types, all tests but the long ones
	@$(python) -m pytest --numprocesses=2 --dist=loadscope --no-loadscope-reorder

check-long: prepare-test  ## the tests that take minutes, and new examples for those that make up their own
	@NEW_EXAMPLES=1 $(python) -m pytest -m "long or hypothesis"

lint: prepare-test  ## ruff and mypy
	@$(python) -m ruff check
	@$(python) -m ruff format --check
	@$(python) -m mypy

.PHONY: prepare-test
prepare-test:
	@sh scripts/python.sh scripts/prepare.py test

clean:  ## remove what was installed and built here; data/, outputs/ and runs/ stay
	rm -rf .venv build dist prefanno.egg-info prefanno/web/static .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
