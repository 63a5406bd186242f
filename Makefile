# Needs python3 (3.11 or later) with venv and pip; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
TEST_FLAGS ?= -q -n 2 --durations=10

.PHONY: demo test test-slow test-shapes lint clean

# Pretrains a small Mixture-of-Recursions on the bundled novels, scores it and prints samples.
# Run again, it resumes or says that it is finished.
demo: .venv/installed
	@JAX_COMPILATION_CACHE_DIR=$(DEMO)/compiled $(BIN)/recursia train --config=mor:demo --workdir=$(DEMO)
	@JAX_COMPILATION_CACHE_DIR=$(DEMO)/compiled $(BIN)/recursia eval --workdir=$(DEMO) --baselines --num_batches=32
	@JAX_COMPILATION_CACHE_DIR=$(DEMO)/compiled $(BIN)/recursia generate --workdir=$(DEMO) --num_tokens=80 \
	  --prompt="It was a " --prompt="My dear " --prompt="She looked at "

test: .venv/installed-test
	$(BIN)/python -m pytest $(TEST_FLAGS) -m "not slow"

test-slow: .venv/installed-test
	$(BIN)/python -m pytest $(TEST_FLAGS) -m slow

# The same tests with every annotated shape and type checked as it runs.
test-shapes: .venv/installed-test
	$(BIN)/python -m pytest $(TEST_FLAGS) --jaxtyping-packages=recursia,beartype.beartype \
	  tests/golden tests/laws/test_segments.py tests/train/test_losses.py tests/test_generate.py

lint: .venv/installed-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

.venv/installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint requirements.txt --editable .
	@touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet --constraint requirements.txt --editable ".[test]"
	@touch $@

clean:
	rm -rf .venv runs build *.egg-info
