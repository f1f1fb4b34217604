# Needs Python 3.11 or newer, make and a package registry; `make help` lists the targets.

PYTHON ?= python3
SPACE ?= spaces/mobilenet.yaml
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WHEEL_VENV := build/wheel-venv
ROOMS := $(patsubst %/__init__.py,%,$(wildcard */__init__.py))

# The machine's own certificates, as pip uses them: uv's built-in list knows no company proxy.
UV_SYSTEM_CERTS ?= 1
export UV_SYSTEM_CERTS
# An activated environment must not be the one that is installed into or run from.
unexport VIRTUAL_ENV PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help install run test faults lint typecheck lock wheel dashboard clean distclean FORCE

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---------------------------------------------------------------- install

# pip is slow but reads its own settings (a private registry in pip.conf, say), which uv does not.
define install_lock
@$(BIN)/uv pip install --compile-bytecode $(2) --python $(1)/bin/python -r requirements.lock \
    || { echo "uv could not install the lock; trying pip, which takes minutes" >&2; \
         $(BIN)/python -m pip --disable-pip-version-check --python $(1)/bin/python install --quiet -r requirements.lock; }
endef

# The stamp names the folder it was written in: a copied or renamed checkout holds scripts that point at the old place.
ifneq ($(wildcard $(STAMP)),)
ifneq ($(shell cat $(STAMP)),$(CURDIR))
MOVED := moved
$(STAMP): FORCE
endif
endif

install: $(STAMP)  ## create .venv with the locked versions and this project, editable; again: nothing to do

$(STAMP): pyproject.toml requirements.lock
	@rm -f $@
	@# An interrupted earlier run leaves half an environment or half a uv: both are tried, not looked for.
	@test -z "$(MOVED)" && $(BIN)/pip --version >/dev/null 2>&1 && $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { $(MAKE) --no-print-directory check-python && "$(PYTHON)" -m venv --clear $(VENV); }
	@$(BIN)/uv --version 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check --force-reinstall \
	    "$$(sed -n 's/^\(uv==[0-9.]*\).*/\1/p' requirements.lock)"
	$(call install_lock,$(VENV))
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@echo "$(CURDIR)" > $@

.PHONY: check-python
check-python:
	@command -v "$(PYTHON)" >/dev/null \
	    || { echo "mnet-search needs Python 3.11 or newer, and there is no $(PYTHON); name one: make install PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.version_info >= (3, 11) or sys.exit("mnet-search needs Python 3.11 or newer, and $(PYTHON) is %d.%d; name another: make install PYTHON=python3.12" % sys.version_info[:2])'
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null \
	    || { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

lock:  ## write requirements.lock anew from pyproject.toml: newest versions, no index named, for every platform
	test -x $(BIN)/uv || $(MAKE) install
	$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 --extra dev --no-emit-index-url --no-header --no-annotate \
	    pyproject.toml --output-file requirements.lock

# ---------------------------------------------------------------- use

run: $(STAMP)  ## search the first space, or: make run SPACE=my.yaml ARGS="--n-trials 5"
	$(BIN)/mnet-search run $(SPACE) $(ARGS)

dashboard: $(STAMP)  ## the live page on loopback, or: make dashboard ARGS="mobilenet"
	$(BIN)/mnet-search dashboard $(ARGS)

# ---------------------------------------------------------------- check

test: $(STAMP)  ## the default test suite, or: make test ARGS="-k pareto"
	$(BIN)/pytest $(ARGS)

faults: $(STAMP)  ## the fault drills: real kills, full disks, a real PostgreSQL; minutes
	$(BIN)/pytest tests/faults -m 'faults and not slow' $(ARGS)

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# setuptools leaves build/lib behind and would put files deleted since into the next wheel.
wheel: $(STAMP)  ## dist/*.whl
	@rm -rf build/lib build/bdist.* dist && mkdir -p build
	$(BIN)/pyproject-build --wheel --no-isolation >build/wheel.log 2>&1 || { cat build/wheel.log >&2; exit 1; }
	@rm -rf build/lib build/bdist.*

# mypy does not follow the editable install, so it reads the wheel, in an environment where the editable project is not;
# room by room, because a namespace package cannot carry the py.typed that `-p mnet_search` would look for.
typecheck: wheel  ## mypy over the installed wheel
	@test -x $(WHEEL_VENV)/bin/python || $(BIN)/python -m venv --without-pip $(WHEEL_VENV)
	$(call install_lock,$(WHEEL_VENV),--quiet)
	$(BIN)/uv pip install --quiet --offline --python $(WHEEL_VENV)/bin/python --no-deps --reinstall dist/*.whl
	$(WHEEL_VENV)/bin/python -m mypy $(addprefix -p mnet_search.,$(ROOMS))

clean:  ## remove what builds and checks leave behind; studies, runs and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv
	rm -rf $(VENV)
