# Everything runs in .venv, which every target sets up when it has to.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo dev unit integration system test lowest newest chaos orders bench lint package docs clean

help: ## Show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED) ## Set up .venv

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install ## Show how events become tasks that publish further events
	$(BIN)/python scripts/demo.py

dev: install ## The same, then keep running, with Flower on port 5555
	$(BIN)/python scripts/demo.py --stay

# Six processes, also on two cores: tests mostly wait, for servers to start and for failures to be detected. Tests that
# share a server run in one process, and start first. They import the same modules hundreds of times, so Python may keep
# what it compiled.
unexport PYTHONDONTWRITEBYTECODE
WORKERS := 6
PYTEST := $(BIN)/python -m pytest -n $(WORKERS)
QUICK := --quick

unit: install ## Run the tests of one part each, in less than a minute; QUICK= runs all of their examples
	$(PYTEST) $(QUICK) tests/unit

integration: install ## Run the tests with workers and commands as processes, and with faults
	$(PYTEST) tests/integration

system: install ## Run the tests with RabbitMQ, Redis Cluster, Sentinel, TLS, Compose and a browser
	$(PYTEST) tests/system

test: install ## Run all tests
	$(PYTEST)

# The tests that notice other versions of the dependencies. constraints.txt has the versions of the other targets.
NOTICING := $(addprefix tests/unit/,broker bus cli config handlers redis storage)
NOTICING += tests/integration/test_worker.py tests/integration/acl/test_publisher.py
lowest: ## Run the tests of parts, commands and workers with the lowest versions that pyproject.toml allows
newest: ## Run them with the newest versions that pyproject.toml allows
lowest newest:
	$(PYTHON) -m venv .venv/$@
	$(PYTHON) scripts/versions.py $@ >.venv/$@/constraints.txt
	.venv/$@/bin/python -m pip install --quiet --disable-pip-version-check -c .venv/$@/constraints.txt -e '.[test]'
	.venv/$@/bin/python -m pytest -n $(WORKERS) --quick $(NOTICING)

SEED ?= $(shell date +%s)
MINUTES ?= 30

chaos: install ## Cause random faults under load and count lost events: SEED=, MINUTES=
	$(BIN)/python -m tests.chaos --seed $(SEED) --minutes $(MINUTES)

orders: install ## Follow every order of the requests of subscribers and workers, with two faults; takes half an hour
	MODEL_FAULTS=1 $(PYTEST) tests/integration/test_interleavings.py -k every

bench: install ## Compare the speed with the alternatives; takes about 20 minutes
	$(BIN)/python -m benchmarks

lint: install ## Check style, types and the wording of texts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/prose.py
	git ls-files -z | xargs -0 $(BIN)/codespell

package: install ## Build the sdist and the wheel in dist/, check them, and install them in an empty environment
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/python -m pytest tests/system/package

docs: install ## Write the generated parts of docs/, and build the site in site/
	$(BIN)/python scripts/reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

screenshots: install ## Take the pictures of Flower in docs/images/ again, with Chromium
	$(BIN)/python scripts/screenshots.py

clean: ## Remove .venv, caches and build results
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist site
