# One front door. `make demo` needs nothing but Python 3.10+ and make; each target makes the environment .venv itself
# when it is missing, broken, half made or older than pyproject.toml or constraints.txt.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP_RUN := $(VENV)/.stamp-run
STAMP_DEV := $(VENV)/.stamp-dev
# Present while pip works: found at the start of a run, it says that an installation was cut short.
BUSY := $(VENV)/.installing
EXTRAS := dev,notebooks,docs,diffusers,trackers,hf

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Idle OpenMP threads must sleep: on shared cores spinning ones cost a factor of 2 to 5.
QUIET_THREADS := OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1

# Empty if the environment works. It does not if an installation never finished or was cut short, if its Python is gone
# or is another version than it was made by, or if the folder was moved (the stamp holds the folder's path).
BROKEN := $(shell test ! -e $(BUSY) && test "$$(cat $(STAMP_RUN) 2>/dev/null)" = "$$(pwd -P)" && \
	$(BIN)/python -c 'import pip' 2>/dev/null || echo yes)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint types docs notebooks bench reliability clean force

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20
	@echo "Options: ARGS='...' goes to the command behind demo, test, notebooks and reliability; PYTHON=python3.12 chooses the Python."

demo: $(STAMP_RUN)  ## run the study on real handwritten digits into runs/digits and write its report
	$(BIN)/featlens study digits $(ARGS)

test: $(STAMP_DEV)  ## run the tests on all cores and show the coverage
	$(QUIET_THREADS) $(BIN)/pytest -n auto --cov --cov-report=term $(ARGS)

lint: $(STAMP_DEV)  ## check style, format and the layers between packages
	@status=0; for check in 'ruff check' 'ruff format --check' 'lint-imports'; do \
		echo "$(BIN)/$$check"; $(BIN)/$$check || status=1; \
	done; exit $$status

types: $(STAMP_DEV)  ## check types strictly
	$(BIN)/mypy

docs: $(STAMP_DEV)  ## build the documentation into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(STAMP_DEV)  ## run every notebook from top to bottom
	$(QUIET_THREADS) $(BIN)/pytest --nbmake --nbmake-timeout=1200 notebooks/ $(ARGS)

bench: $(STAMP_DEV)  ## run every benchmark, one after the other
	@set -e; failed=; for file in tests/benchmarks/bench_*.py; do \
		test -e "$$file" || { echo "make bench: there is no tests/benchmarks/bench_*.py"; exit 1; }; \
		name=$$(basename "$$file" .py); echo "== $$name"; \
		OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m "tests.benchmarks.$$name" || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

reliability: $(STAMP_DEV)  ## kill what writes feature files 200 times and check that nothing is lost
	$(QUIET_THREADS) $(BIN)/python -m tests.reliability.kills --kills 200 $(ARGS)

clean:  ## remove the environment, caches, site/ and build results; runs/ is never touched
	rm -rf $(VENV) site build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.*
	find . \( -path ./runs -o -path ./.git \) -prune -o \
		\( -name __pycache__ -o -name .ipynb_checkpoints -o -name '*.egg-info' \) -type d -prune -exec rm -rf {} +

force:

# $(call install,WHAT TO INSTALL,STAMPS): pip into the environment, made anew if it is broken.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "make: featlens needs Python 3.10 or newer; '$(PYTHON)' is" \
			"$$($(PYTHON) --version 2>&1 | tail -n 1). Choose one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(if $(BROKEN),rm -rf $(VENV); $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "make: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; })
	@echo "Installing $(1) into $(VENV) (from nothing: a few minutes) ..."
	@touch $(BUSY)
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '$(1)' || { \
		test ! -e $(STAMP_RUN) || rm -f $(BUSY); \
		echo "make: pip could not install $(1); see its message above" >&2; exit 1; }
	@for stamp in $(2); do pwd -P > "$$stamp"; done; rm -f $(BUSY)
endef

$(STAMP_RUN): pyproject.toml constraints.txt $(if $(BROKEN),force)
	$(call install,.,$(STAMP_RUN))

$(STAMP_DEV): pyproject.toml constraints.txt $(if $(BROKEN),force)
	$(call install,.[$(EXTRAS)],$(STAMP_RUN) $(STAMP_DEV))
