# The daily words. Nothing needs to be installed but Python 3.11 or newer (with venv), git and make.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.PHONY: help demo test sim chaos fuzz report check format bench performance clean

help: ## list these words
	@sed -n 's/^\([a-z]*\):.*## /\1|/p' Makefile | while IFS='|' read -r word text; do printf '  make %-11s %s\n' "$$word" "$$text"; done

demo: $(VENV)/.run ## store real files in a fresh local cluster, kill the leader meanwhile, read all back (3 minutes)
	@$(BIN)/python -m bench.demo

test: $(VENV)/.dev ## run all tests, JOBS=4 at a time (most wait for processes more than they compute)
	@$(BIN)/python -m pytest -q -n $(or $(JOBS),4) --dist worksteal $(ARGS)

sim: $(VENV)/.run ## simulate masters under faults: N=1000 seeds, or SEED=17 to replay one and hear its story
	@$(BIN)/python -m dfs.testing.simulate $(if $(SEED),--seed $(SEED),--count $(or $(N),200)) $(ARGS)

chaos: $(VENV)/.run ## break real clusters under load for MINUTES=4, from SEED=1 on, and judge what clients saw
	@$(BIN)/python -m dfs.testing.chaos.run --seed $(or $(SEED),1) --minutes $(or $(MINUTES),4) $(ARGS)

fuzz: $(VENV)/.run ## fuzz every parser, guided by coverage: SECONDS=60 each, or TARGET=frames alone
	@$(PIP) install -e '.[fuzz]'
	@$(BIN)/python -m dfs.testing.fuzz.run $(or $(TARGET),all) $(or $(SECONDS),60)

report: $(VENV)/.run ## write docs/reliability.md anew: chaos for MINUTES=10, N=1000 simulated seeds
	@mkdir -p build && rm -f build/verdicts.jsonl
	@$(BIN)/python -m dfs.testing.chaos.run --seed $(or $(SEED),1) --minutes $(or $(MINUTES),10) --json build/verdicts.jsonl || true
	@$(BIN)/python -m dfs.testing.simulate --count $(or $(N),1000) | tee build/simulated.txt || true
	@$(BIN)/python -m dfs.testing.chaos.report build/verdicts.jsonl --simulated build/simulated.txt \
		--commit "$$(git rev-parse --short HEAD) of $$(git log -1 --format=%cs)" > docs/reliability.md
	@echo 'wrote docs/reliability.md'

check: $(VENV)/.dev ## format, lint, types, import rules, house rules
	@$(BIN)/ruff format --check --quiet . || { echo 'not formatted; run: make format'; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q tests/test_tidy.py

format: $(VENV)/.dev ## let ruff format the code and sort the imports
	@$(BIN)/ruff check --quiet --fix --select I,RUF022 .
	@$(BIN)/ruff format --quiet .

bench: $(VENV)/.run ## measure all beside cp, the disk and a raw socket: QUICK=1, ONLY=tree,calls, AGAINST=/mnt/peer, PLOTS=1
	@$(BIN)/python -m bench $(if $(QUICK),--preset quick) $(if $(ONLY),--only $(ONLY)) \
		$(if $(AGAINST),--against $(AGAINST)) $(ARGS)
	@$(if $(PLOTS),$(PIP) install -e '.[bench]' && $(BIN)/python -m bench.growth $(if $(QUICK),--preset quick))

performance: $(VENV)/.run ## write docs/performance.md anew on a quiet machine (15 minutes; QUICK=1)
	@$(PIP) install -e '.[bench]'
	@$(BIN)/python -m bench $(if $(QUICK),--preset quick) --json build/bench.json
	@$(BIN)/python -m bench.growth $(if $(QUICK),--preset quick) --json build/growth.json --plots build
	@$(BIN)/python -m bench.performance build/bench.json build/growth.json docs/performance.md

clean: ## remove the virtual environment and all caches
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.pip:
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or newer is needed; install it, or name one: make PYTHON=/path/to/python3.12'; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo 'making $(VENV)'; $(PYTHON) -m venv --clear $(VENV); } \
		|| { echo 'cannot make a virtual environment; on Debian: apt install python3-venv'; exit 1; }
	@touch $@

$(VENV)/.run: pyproject.toml $(VENV)/.pip
	@echo 'installing dfs and what it needs into $(VENV)'
	@$(PIP) install -e '.[fast]' || { echo 'that failed; trying without the optional uvloop'; $(PIP) install -e .; }
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo 'installing the tools for tests and checks into $(VENV)'
	@$(PIP) install -e '.[dev]'
	@touch $@
