# Two commands do all the set-up there is: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow test-all lint fuzz bench bench-diagnosis clean

demo: .venv/demo-installed
	$(BIN)/holdtrue demo

test: lint
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

# Half an hour: each point, byte and case of what `make test` tries some of.
test-slow: .venv/dev-installed
	$(BIN)/pytest -n 2 --dist load -m slow

test-all: test test-slow

lint: .venv/dev-installed
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# In an environment of its own: the tools that we are compared with are not ours to install.
# An hour and a half, on a machine that does nothing else; as root, files are really cold.
bench: .venv-bench/installed
	.venv-bench/bin/python -m benchmarks --write

# Each parser for SECONDS, in an environment of its own: the fuzzer sees every branch of what it
# loads, and needs no torch. It begins at honest files and at tests/attacks, and goes on from where
# it was. A crash ends up in .fuzz/found; mended, it becomes one of tests/attacks.
SECONDS ?= 300
fuzz: .venv-fuzz/installed .venv/dev-installed
	PYTHONPATH=tests HOLDTRUE_CANARY=/dev/null/canary \
		$(BIN)/python -W ignore -m attacks.fuzzing.seeds .fuzz
	PYTHONPATH=tests .venv-fuzz/bin/python -m attacks.fuzzing --seconds $(SECONDS) --work .fuzz $(TARGETS)

.venv-fuzz/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	.venv-fuzz/bin/python -m pip install --quiet --disable-pip-version-check --only-binary=:all: \
		'atheris>=3' || { echo "no wheel of atheris for this Python or system: install clang, then" \
		"CLANG_BIN=\$$(which clang) .venv-fuzz/bin/python -m pip install atheris" \
		"(github.com/google/atheris says how), and touch $@" >&2; exit 1; }
	touch $@

# In an environment of its own: the tools that the doctor is compared with are not ours to install.
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
	rm -rf .venv .venv-bench .venv-fuzz .fuzz .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build src/*.egg-info
