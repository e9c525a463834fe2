# make demo shows what it does, make check is for every change, make test is everything that must pass.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# One for each extra of pyproject.toml: what is installed of it.
SERVER := $(VENV)/.server
DEV    := $(VENV)/.dev
DOCS   := $(VENV)/.docs
# Independent of each other and of the machine's load; a file's tests stay together and share its fixtures.
SPREAD := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help demo check test lint unit fuzz bench example chaos docs clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)$$/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 10

$(VENV)/.%: pyproject.toml constraints.txt
	@echo "==> installing hybrid-router[$*] with its pinned dependencies into $(VENV): up to 3 GB and 5 minutes, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

demo: $(SERVER)  ## run the main job: interactive and bulk requests side by side
	@$(BIN)/hybrid-router demo $(ARGS)

check: lint  ## lint, types, import contracts, unit and fast contract tests: under 90 s
	@$(BIN)/pytest tests/contract tests/unit tests/test_tidy.py -m "not slow" $(SPREAD) $(ARGS)

test: lint  ## everything that must pass: about 12 minutes
	@echo "==> tests"
	@$(BIN)/pytest tests/contract tests/property tests/unit tests/test_tidy.py $(SPREAD) $(ARGS)
	@echo "==> acceptance tests, on real servers"
	@$(BIN)/pytest tests/acceptance $(ARGS)

lint: $(DEV)  ## ruff, mypy and the import contracts
	@echo "==> lint: ruff, mypy, import contracts"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

unit: $(DEV)  ## the unit tests alone
	@$(BIN)/pytest tests/unit $(ARGS)

fuzz: $(DEV)  ## the property tests with ten times the cases: 100,000 mutated requests
	@FUZZ=1 $(BIN)/pytest tests/property $(SPREAD) $(ARGS)

bench: $(DEV)  ## one benchmark: make bench NAME=overhead
	@test -n "$(NAME)" || { echo "usage: make bench NAME=..., one of:"; ls tests/benchmarks | sed -n 's/^bench_\(.*\)\.py$$/  \1/p'; exit 2; }
	@$(BIN)/python -m tests.benchmarks.bench_$(NAME) $(ARGS)

example: $(DEV)  ## build one example's artifacts: make example NAME=digits
	@$(BIN)/python -m optimizers.examples.$(NAME) $(ARGS)

chaos: $(DEV)  ## kill, stop and poison workers and the server for three minutes: make chaos ARGS='--seed 7'
	@$(BIN)/python -m tests.chaos.run --seconds 180 $(ARGS)

docs: $(DOCS)  ## build the documents as a site in build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "build/site; for the search: $(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site"

# var/ is not built: it holds accepted jobs. Versions before that kept theirs in build/queue.
clean:  ## remove what was built and installed; accepted jobs stay
	@test ! -d build || find build -mindepth 1 -maxdepth 1 ! -name queue -exec rm -rf {} +
	@test ! -d build/queue || echo "kept build/queue: it may hold accepted jobs, which hybrid-router serve takes over"
	@-rmdir build 2>/dev/null || true
	rm -rf artifacts $(VENV)
