# hyperhive: what a person types.  `make help` lists it.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
MESSAGE ?= say bob: please count the words of this sentence
HIVE_HOME ?=
# The first interpreter here that is new enough; override with PYTHON=/path/to/python3.12
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.DEFAULT_GOAL := help
.PHONY: help demo run test coverage lint format bench lock install uninstall clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed ## two agents talk to each other; MESSAGE="…" says what to tell alice
	@$(BIN)/python -m hive_core.cli.demo --message '$(subst ','\'',$(value MESSAGE))'

run: $(VENV)/.installed ## a local hive in the foreground; HIVE_HOME=DIR says where
	@$(BIN)/hive-core serve --local $(if $(HIVE_HOME),--home '$(HIVE_HOME)')

test: $(VENV)/.installed-dev ## the whole suite, linters and types included
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal -m 'not claude and not host_bed' $(ARGS)

coverage: $(VENV)/.installed-dev ## which lines no test in this process reaches
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal -m 'not claude and not host_bed' --ignore tests/daemon --cov --cov-report=term $(ARGS)

lint: $(VENV)/.installed-dev ## ruff, mypy, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix -q . ; $(BIN)/ruff format -q .

bench: $(VENV)/.installed ## our speed beside the limits of this machine, in one run
	@$(BIN)/python -m benchmarks $(ARGS)

lock: ## resolve pyproject.toml into the two lock files again (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
		--no-header --no-annotate pyproject.toml --group build -o requirements.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
		--no-header --no-annotate pyproject.toml --group dev -o requirements-dev.lock

# Not the interpreter of .venv: machines have to have the same one at the same path.
INSTALL = $(foreach name,PREFIX DESTDIR PYTHON,$(if $(filter command% environment%,$(origin $(name))),$(name)='$($(name))')) \
	sh systemd/install.sh

install: ## as root: hyperhive on this host; PREFIX=/opt/hyperhive and DESTDIR= say where
	@$(INSTALL) install

uninstall: ## as root: remove what install has put there, and no state
	@$(INSTALL) uninstall

clean: ## remove .venv and the caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*

$(BIN)/python:
	@test -n '$(PYTHON)' || { echo 'hyperhive needs Python 3.11 or newer; say where it is with PYTHON=/path/to/python3'; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo 'cannot make a virtual environment: on Debian and Ubuntu run  apt install python3-venv'; exit 1; }

$(VENV)/.installed: $(BIN)/python requirements.lock pyproject.toml
	@echo 'Installing the locked dependencies into $(VENV) …'
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.lock
	@echo 'Installing the locked test tools …'
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@
