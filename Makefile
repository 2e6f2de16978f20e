# SPDX-License-Identifier: Apache-2.0
# make quickstart | make quickstart-generative | make test | make lint | make bench | make docs   (README: what each does)

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
PROTOS := $(shell find protos -name '*.proto')
REQUIREMENTS := $(if $(shell command -v nvidia-smi 2>/dev/null),requirements/gpu.txt,requirements/cpu.txt)
export OMP_WAIT_POLICY ?= PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup native quickstart quickstart-generative test test-slow lint bench docs clean

help:
	@sed -n 2p Makefile

setup: $(VENV)/.protos native

# C++ ops, where there is a compiler; a few hundredths of a second when they are built
native: $(VENV)/.installed
	@$(PY) tzgen/ops/native/build.py

$(VENV)/.installed: pyproject.toml setup.py $(wildcard requirements/*.txt) third_party/fbgemm-gpu-cpu-shim/pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else "tzgen needs Python 3.11 or 3.12, found %d.%d: make PYTHON=python3.11 ..." % v)'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing $(REQUIREMENTS) into $(VENV) (first time: one to three minutes, about 2 GB)"
	@$(PY) -m pip install --quiet -r $(REQUIREMENTS)
	@touch $@

$(VENV)/.protos: $(VENV)/.installed $(PROTOS)
	@$(PY) setup.py --quiet protos
	@touch $@

quickstart: setup
	$(PY) tools/quickstart.py

quickstart-generative: setup
	$(PY) tools/quickstart_generative.py

test: setup
	$(PY) -m pytest -n 2 --dist loadfile -q

test-slow: setup
	$(PY) -m pytest -m 'slow and not gpu' -q

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: setup
	$(PY) tools/bench_data.py
	$(PY) tools/bench_train.py
	$(PY) tools/bench_ops.py
	$(PY) tools/bench_attention_cpu.py
	$(PY) tools/bench_stu.py
	$(PY) tools/bench_cached.py
	$(PY) tools/bench_decode.py

docs: setup
	$(PY) tools/gen_config_reference.py

clean:
	rm -rf build dist *.egg-info tzgen/protos tzgen/ops/native/lib experiments $(VENV)/.protos
