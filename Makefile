# `make run` and `make test` need Python 3.10 to 3.13 and make; everything else goes into .venv.
#   make run    the demo, or your own job:  make run ARGS="--input=corpus.jsonl --output=vectors"
#   make test   the tests:                  make test ARGS="-k tokenize"
#   make check  lint, format, types
#   make format mends what ruff can mend
#   make lock   resolves the pins again:    make lock ARGS=--upgrade
#   make clean  removes caches and build files;  make distclean  removes .venv as well

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install
UV ?= uv
LOCK := $(UV) pip compile --no-config --quiet --universal --python-version 3.10 \
	--generate-hashes --no-emit-find-links --custom-compile-command "make lock"

# A Python that fits: $(PYTHON) if given, else the first on the PATH that is 3.10 to 3.13 and can
# make a virtual environment (Debian keeps that apart, in python3-venv).
CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.10 python)
FITS := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: run test check format lock clean distclean

run: $(VENV)/.run-installed $(VENV)/.package-installed
	$(BIN)/python -m pipeline.run --runner=DirectRunner $(ARGS)

test: $(VENV)/.dev-installed $(VENV)/.package-installed
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile $(ARGS)

check: $(VENV)/.dev-installed $(VENV)/.package-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict pipeline transforms

format: $(VENV)/.dev-installed
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

lock:
	@command -v $(UV) >/dev/null || { \
	  echo "make lock needs uv: pip install uv, or give its path with UV=" >&2; exit 1; }
	$(LOCK) $(ARGS) requirements.in -o requirements.txt
	$(LOCK) $(ARGS) requirements-dev.in -o requirements-dev.txt

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis spark-warehouse
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

# Each stamp is touched once its install is complete, and is out of date when its pins change.

$(VENV)/.created:
	@for candidate in $(CANDIDATES); do \
	  if "$$candidate" -c '$(FITS)' >/dev/null 2>&1; then \
	    echo "Creating $(VENV) with $$candidate ($$("$$candidate" --version))"; \
	    "$$candidate" -m venv --clear $(VENV) && touch $@; \
	    exit; \
	  fi; \
	done; \
	echo "No Python 3.10 to 3.13 with the venv module among: $(CANDIDATES)." >&2; \
	echo "Install one (on Debian also python3-venv), or name it: make PYTHON=/path/to/python3.12" >&2; \
	exit 1

$(VENV)/.run-installed: requirements.txt requirements-demo.txt | $(VENV)/.created
	@echo "Installing the pinned runtime into $(VENV): 2.7 GB, some minutes the first time"
	@$(PIP) --require-hashes -r requirements.txt
	@$(PIP) --require-hashes --no-deps -r requirements-demo.txt
	@touch $@

# The build tools that a source archive (pyspark's) needs are among the runtime's pins, so with
# --no-build-isolation nothing without a hash is fetched.
$(VENV)/.dev-installed: requirements-dev.txt $(VENV)/.run-installed
	@echo "Installing the pinned test and check tools into $(VENV)"
	@$(PIP) --require-hashes --no-build-isolation -r requirements-dev.txt
	@touch $@

$(VENV)/.package-installed: setup.py pyproject.toml pipeline/_version.py $(VENV)/.run-installed
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@
