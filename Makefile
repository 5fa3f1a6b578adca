# Two commands do all the set-up there is: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all lint bench bench-diagnosis clean

demo: .venv/demo-installed
	$(BIN)/holdtrue demo

test: lint
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

test-all: lint
	$(BIN)/pytest -n 2 --dist loadfile

lint: .venv/dev-installed
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# In an environment of its own: the tools that we are compared with are not ours to install.
# Twenty minutes and more, on a machine that does nothing else; as root, files are really cold.
bench: .venv-bench/installed
	.venv-bench/bin/python -m benchmarks --write

bench-diagnosis: .venv-bench/installed
	.venv-bench/bin/python -m benchmarks.diagnosis --write

BENCH_REQUIREMENTS := benchmarks/diagnosis/requirements.txt benchmarks/speed/requirements.txt

.venv-bench/installed: $(BENCH_REQUIREMENTS) pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[dev]' $(addprefix -r ,$(BENCH_REQUIREMENTS))
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo-installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[demo]'
	touch $@

.venv/dev-installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-bench .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build src/*.egg-info
