# `make demo` and `make test` are the two commands; each sets up what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

OS_PACKAGES := gcc libc6-dev python3-dev python3-venv iptables iproute2 nginx-light curl nghttp2-client nghttp2-server \
	mosquitto mosquitto-clients thrift-compiler
BENCH_PACKAGES := wrk haproxy

NATIVE := $(wildcard protocols/*.pyx protocols/*.pxd proxy/*.pyx proxy/*.pxd)

.PHONY: setup demo test bench check clean

setup: $(VENV)/.compiled

# OS packages only where they are missing and can be installed; without root, say what is missing and go on.
$(VENV)/.os-packages: Makefile deploy/os-packages
	@mkdir -p $(VENV)
	@PYTHON="$(PYTHON)" deploy/os-packages $(OS_PACKAGES)
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.os-packages
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check "Cython>=3.1" "setuptools>=77"
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-build-isolation --editable ".[test,demo]"
	@touch $@

$(VENV)/.compiled: $(VENV)/.installed setup.py $(NATIVE)
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

demo: setup
	@$(BIN)/arca demo

test: setup
	@$(BIN)/python -m pytest

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: setup
	@deploy/os-packages $(BENCH_PACKAGES)
	@$(BIN)/python -m tests.bench.install
	@$(BIN)/python -m tests.bench $(BENCH)

clean:
	rm -rf build *.egg-info protocols/*.c proxy/*.c protocols/*.so proxy/*.so
