# Needs python3 (3.11 or later) with venv and pip; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= runs/demo
DEMO_FLAGS ?=
DEMO_BATCHES ?= 32
# A worker keeps to whole files, whose programs its tests share, until the other has none left.
TEST_FLAGS ?= -q -n 2 --dist=worksteal --durations=10
# Else each of some hundred processes would compile again what it imports, for seconds.
unexport PYTHONDONTWRITEBYTECODE
NEWEST = $(shell .ci/newest-python $(PYTHON))

.PHONY: .venv-newest/tested bench-gpu demo docs test test-slow test-exhaustive test-torch test-newest test-presets test-shapes test-gpu-compile lint clean

# Pretrains a small Mixture-of-Recursions on the bundled novels, scores it and prints samples.
# Run again, it resumes or says that it is finished.
demo: .venv/installed
	@$(BIN)/recursia train --config=mor:demo --workdir=$(DEMO) $(DEMO_FLAGS)
	@$(BIN)/recursia eval --workdir=$(DEMO) --baselines --num_batches=$(DEMO_BATCHES)
	@$(BIN)/recursia generate --workdir=$(DEMO) --num_tokens=80 \
	  --prompt="It was a " --prompt="My dear " --prompt="She looked at "

test: .venv/installed-test
	$(BIN)/python -m pytest $(TEST_FLAGS) -m "not slow and not gpu_compile"

# A third worker runs while others wait for the processes that they have started.
test-slow: .venv/installed-test
	$(BIN)/python -m pytest $(TEST_FLAGS) -n 3 -m "slow and not exhaustive and not gpu_compile"

# What CI leaves out: the other combinations of values, more random points, kills and faults.
test-exhaustive: .venv/installed-test
	$(BIN)/python -m pytest $(TEST_FLAGS) -m "exhaustive and not gpu_compile"

# Weights in and out against transformers, and training steps against models in PyTorch (installs
# up to 5 GB).
test-torch: .venv/installed-torch
	$(BIN)/python -m pytest $(TEST_FLAGS) -m "not exhaustive" \
	  tests/convert/test_huggingface_logits.py tests/convert/test_export_logits.py \
	  tests/test_train_step_benchmark.py::test_torch_gives_the_same_loss_and_gradient_norm

# A few minutes with the newest Python that is found and the newest packages that pyproject.toml
# takes: numbers of six authors' programs, the command line, a training that resumes, a program
# compiled for a TPU, kernels for GPUs interpreted on a CPU, which older versions of jax cannot.
test-newest:
	@if [ -n "$(NEWEST)" ]; then $(MAKE) .venv-newest/tested; else \
	  echo "test-newest: skipped, no Python is found that is newer than that of $(PYTHON)"; fi

PARITY = tests/golden/test_parity.py::test_the_authors_code_is_reproduced
.venv-newest/tested: .venv-newest/installed
	.venv-newest/bin/python -m pytest $(TEST_FLAGS) -m "not exhaustive and not gpu_compile" \
	  "$(PARITY)[mor_expert]" "$(PARITY)[moeut_g2]" "$(PARITY)[hrm_text]" "$(PARITY)[huginn]" \
	  "$(PARITY)[lckv_yoco]" "$(PARITY)[muon]" tests/test_cli.py \
	  "tests/train/test_loop.py::test_a_run_told_to_stop_ends_where_the_unbroken_one_does" \
	  "tests/preflight/test_compile.py::test_the_smallest_presets_fit_the_machine_they_are_meant_for"
	.venv-newest/bin/python -m pytest $(TEST_FLAGS) -m "not exhaustive and not gpu_compile" \
	  -k "mosaic_gpu and (packed or several_blocks or ops_and_their_gradients)" \
	  tests/kernels/test_routed_attention.py tests/kernels/test_grouped_matmul.py

# Compiles kernels and training steps for NVIDIA GPUs, on a machine that has none (installs 5 GB).
test-gpu-compile: .venv-gpu/installed
	.venv-gpu/bin/python -m pytest $(TEST_FLAGS) -m gpu_compile

# Compiles every preset for the machine that it names, of which test-slow takes a few: hours.
# Without the limit on the stack: libtpu exceeds 8 MiB on sut:244m.
test-presets: .venv/installed-test
	ulimit -s unlimited; RECURSIA_PRESETS=all $(BIN)/python -m pytest $(TEST_FLAGS) -m slow \
	  tests/preflight/test_presets_fit.py

# On one GPU: the fastest sizes of kernels, written to kernels/tuned; kernels against their targets;
# training steps against dense models and PyTorch.
# Calls of ten minutes at most: run it again until it says nothing is left.
bench-gpu: .venv-gpu/installed
	.venv-gpu/bin/python benchmarks/kernels.py --tune --minutes=4 \
	  --out=benchmarks/results/kernels_gpu.jsonl
	.venv-gpu/bin/python benchmarks/kernels.py --out=benchmarks/results/kernels_gpu.jsonl
	.venv-gpu/bin/python benchmarks/train_step.py --torch \
	  --presets=vanilla:360m,recursive:360m,mor:360m --out=benchmarks/results/train_step_gpu.json
	.venv-gpu/bin/python benchmarks/train_step.py --presets=moeut:244m \
	  --out=benchmarks/results/train_step_gpu_moeut.json

# The same tests with every annotated shape and type checked as it runs.
test-shapes: .venv/installed-test
	$(BIN)/python -m pytest $(TEST_FLAGS) -m "not exhaustive" \
	  --jaxtyping-packages=recursia,beartype.beartype \
	  tests/laws/test_sight.py tests/test_losses.py tests/test_generate.py

lint: .venv/installed-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/basedpyright --level error

# The documentation as a site, in build/docs; a warning is an error.
docs: .venv/installed-test
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "open build/docs/index.html"

.venv/installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint requirements.txt --editable .
	@touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet --constraint requirements.txt --editable ".[test]"
	@touch $@

.venv/installed-torch: .venv/installed-test
	$(BIN)/pip install --quiet --constraint requirements.txt --editable ".[test,torch]"
	@touch $@

.venv-newest/installed: pyproject.toml
	$(NEWEST) -m venv --clear .venv-newest
	.venv-newest/bin/pip install --quiet --editable ".[tpu]" hypothesis pytest pytest-xdist
	@touch $@

.venv-gpu/installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/pip install --quiet --constraint requirements.txt --editable ".[cuda,test]"
	@touch $@

clean:
	rm -rf .venv .venv-gpu .venv-newest runs build *.egg-info
