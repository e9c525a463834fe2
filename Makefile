# make demo, make test: the two commands. Everything else serves them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test lint unit bench example chaos clean
.DELETE_ON_ERROR:

$(STAMP): pyproject.toml constraints.txt
	@echo "==> setting up $(VENV) with the pinned dependencies (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## run the main job: interactive and bulk requests beside each other
	@$(BIN)/hybrid-router demo $(ARGS)

lint: $(STAMP)
	@echo "==> lint: ruff, mypy, import contracts"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

unit: $(STAMP)
	@$(BIN)/pytest tests/unit

test: lint  ## everything that must pass
	@echo "==> tests"
	@$(BIN)/pytest tests --ignore=tests/benchmarks $(ARGS)

bench: $(STAMP)  ## make bench NAME=overhead
	@test -n "$(NAME)" || { echo "usage: make bench NAME=..., one of:"; ls tests/benchmarks | sed -n 's/^bench_\(.*\)\.py$$/  \1/p'; exit 2; }
	@$(BIN)/python -m tests.benchmarks.bench_$(NAME) $(ARGS)

example: $(STAMP)  ## make example NAME=digits
	@$(BIN)/python -m optimizers.examples.$(NAME) $(ARGS)

chaos: $(STAMP)  ## kill, stop and poison workers and the server for three minutes: make chaos ARGS='--seed 7'
	@$(BIN)/python -m tests.chaos.run --seconds 180 $(ARGS)

# var/ is not built: it holds accepted jobs. Versions before that kept theirs in build/queue.
clean:
	@test ! -d build || find build -mindepth 1 -maxdepth 1 ! -name queue -exec rm -rf {} +
	@test ! -d build/queue || echo "kept build/queue: it may hold accepted jobs, which hybrid-router serve takes over"
	@-rmdir build 2>/dev/null || true
	rm -rf artifacts $(VENV)
