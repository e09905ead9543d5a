# make demo: the whole way on synthetic scans.    make test: lint, types, floors, tests.
# Both set up .venv themselves, once; wheels only, versions pinned in Testing/constraints.txt.
# All targets are explained in CONTRIBUTING.md.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
READY := $(VENV)/.ready
DEMO_OUTPUT ?= hybridmim-demo

.PHONY: demo test pytest bench bench-quick docs icons hooks lint format types setup clean

demo: $(READY)
	$(BIN)/python -m HybridMIMLib demo --output "$(DEMO_OUTPUT)"

test: lint types pytest

# A process for each core. Each begins with a share of its own, file after file, because the tests of one file share
# what they make; who is done takes from the end of another's, so that no long file keeps one core waiting for the other.
pytest: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(PYTEST_OPTIONS)

bench: $(READY)
	$(BIN)/python Testing/Benchmarks/first_way.py
	$(BIN)/python Testing/Benchmarks/data.py
	$(BIN)/python Testing/Benchmarks/pretraining.py
	$(BIN)/python Testing/Benchmarks/inference.py
	$(BIN)/python Testing/Benchmarks/learning.py
	$(BIN)/python Testing/Benchmarks/segments.py

# To see that they run: small scans and networks, figures that mean nothing.
bench-quick: $(READY)
	$(BIN)/python Testing/Benchmarks/data.py --quick
	$(BIN)/python Testing/Benchmarks/pretraining.py --size tiny --crop 64 --repetitions 1 --minutes 2
	$(BIN)/python Testing/Benchmarks/inference.py memory --crop 32 --large 64 64 48 --minutes 2
	$(BIN)/python Testing/Benchmarks/segments.py --size small

# Pages and icons are kept in the repository; tests fail when they are stale.
docs: $(READY)
	$(BIN)/python Resources/render_documentation.py

icons: $(READY)
	$(BIN)/python Resources/render_icons.py

# Lint and types before every commit; pre-commit is no part of the tests, and so not of Testing/requirements.txt.
hooks: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check -q --only-binary=:all: "pre-commit>=4,<5"
	$(BIN)/pre-commit install

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
