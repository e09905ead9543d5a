# make demo: the whole way on synthetic scans.    make test: lint, types, floors, tests.
# Both set up .venv themselves, once; wheels only, versions pinned in Testing/constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_OUTPUT ?= hybridmim-demo

.PHONY: demo test bench lint format types setup clean

demo: $(READY)
	$(BIN)/python -m HybridMIMLib demo --output "$(DEMO_OUTPUT)"

# A process for each core; the tests of one file stay together, because they share what they make.
test: lint types
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

bench: $(READY)
	$(BIN)/python Testing/Benchmarks/first_way.py
	$(BIN)/python Testing/Benchmarks/data.py
	$(BIN)/python Testing/Benchmarks/pretraining.py
	$(BIN)/python Testing/Benchmarks/inference.py
	$(BIN)/python Testing/Benchmarks/learning.py

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: $(READY)

$(READY): Testing/requirements.txt Testing/constraints.txt HybridMIMTraining/HybridMIMLib/requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "The venv module is missing: on Debian and Ubuntu, apt-get install python3-venv"; rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -q --only-binary=:all: -r Testing/requirements.txt -c Testing/constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO_OUTPUT)
