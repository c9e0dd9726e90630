# Commands for people; each sets up what it needs on a fresh Debian 12 with Python 3.11, and is quick when
# nothing is left to do.
#
#   make search   an MPI search on handwritten digits, every candidate starting from stored weights
#   make test     what a change should pass at once: the optimised C++ tests, Python, MPI, end to end
#   make test-all all tests: those, the long ones, C++ under sanitizers, the fuzz targets for 20 s each, the wheel
#   make setup    what a search needs: Debian packages, .venv, the project installed in it with TensorFlow and MPICH
#   make docs     the documentation as a site, in site/
#
# Each says what it is about to download and compile, and how long that takes. Developers' tools come with what needs
# them (`make test`, `make check`), into the same .venv.
#
# For developers: `make setup-dev` (all their tools), `make check` (formatting, lint, types), `make test-backends` (the trainer on JAX and Torch),
# `make format`, `make release` (what is published, in dist/), `make walk` (the tutorial as a new user types it),
# `make baseline` (benchmarks/baseline.json), `make clean`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: soak setup setup-dev search baseline docs test test-all test-cpp test-fuzz test-python test-wheel test-backends release walk check format clean debian-build debian-test

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

# What a build needs, and what the tests need besides.
DEBIAN_BUILD := g++ cmake ninja-build python3-dev python3-venv libfabric-dev libxxhash-dev libsodium-dev libcli11-dev libsqlite3-dev
DEBIAN_TEST := libgtest-dev libgmock-dev clang-14 clang-format-14 libclang-rt-14-dev chromium redis-server dataset-fashion-mnist

SOURCES := pyproject.toml CMakeLists.txt CMakePresets.json \
    $(shell find cpp_store graph_meta transfer_nas -type f -not -name '*.so' -not -path '*__pycache__*' \
                 -not -path 'cpp_store/tests/*' -not -path 'cpp_store/fuzz/*')
CPP_FILES := $(shell find cpp_store benchmarks -name '*.cpp' -o -name '*.hpp')

setup: $(VENV)/.installed

setup-dev: $(VENV)/.installed-dev debian-test

# A directory holds one run: the first search is runs/search, later ones are named by their time.
search: setup
	run=runs/search; [ ! -e $$run ] || run=runs/$$(date +%Y%m%d-%H%M%S); \
	$(BIN)/mpiexec -np 2 $(BIN)/python -m transfer_nas.evolve --application digits --population_size 16 \
	    --sample_size 4 --max_evals 64 --seed 1 --output_dir $$run
	@echo 'Before any other command, activate the environment in this shell: source $(BIN)/activate'

# Of this machine, with nothing else running: six minutes times REPEAT. Its `commit` says what was measured, so start
# from a checkout without changes, and commit the file on top of it.
REPEAT ?= 1
baseline: $(VENV)/.installed-benchmarks
	$(BIN)/python -m benchmarks run --quick --repeat $(REPEAT) --output runs/baseline
	cp runs/baseline/results.json benchmarks/baseline.json

# Fails on a link that leads nowhere, in the pages and from them to sources. What is switched off is Material's notice
# that it will be mended until May 2027 only and has a successor: pyproject.toml holds it and MkDocs to what works.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "open site/index.html"

test: debian-build debian-test setup-dev
	cmake --preset release > /dev/null
	cmake --build build/release
	ctest --test-dir build/release --parallel $$(nproc) --output-on-failure
	$(PYTEST) -m 'not long'

test-all: test-cpp test-fuzz test-python test-wheel

# Workers steal each other's tests, as a few of them take minutes. One more than there are cores, as many tests wait for
# time-outs of servers; but no more than four, as tests start ranks of their own.
test-python: setup-dev
	$(PYTEST)

PYTEST = workers=$$(($$(nproc) + 1)); $(BIN)/python -m pytest -n $$((workers < 4 ? workers : 4)) --dist worksteal

# AddressSanitizer (by Clang) and ThreadSanitizer (by GCC) find the bugs; the optimised build runs the long random
# comparisons.
test-cpp: debian-build debian-test
	for preset in release asan tsan; do \
	    cmake --preset $$preset > /dev/null; \
	    cmake --build build/$$preset; \
	    ctest --test-dir build/$$preset --parallel $$(nproc) --output-on-failure; \
	done

# What CI does a part of: every place where a system call can fail or a server die, 5,000 faults, and a
# million operations of eight clients beside servers that are killed; and ten minutes of each fuzz target.
soak: test-cpp setup-dev
	CPP_STORE_SOAK=1 build/release/cpp_store/tests/test_durable --gtest_filter='*Fault*:*FailingCalls*'
	$(BIN)/python -m tests.cpp_store.crashes --faults 5000
	CPP_STORE_HISTORIES=100000 build/release/cpp_store/tests/test_replication
	$(BIN)/python -m tests.cpp_store.replica_crashes --faults 1000 --histories 40
	$(BIN)/python -m tests.cpp_store.load --operations 1000000 --restart 30
	$(BIN)/python -m tests.transfer_nas.soak_disk
	$(MAKE) test-fuzz FUZZ_SEED=0 FUZZ_SECONDS=600

# They share the build of AddressSanitizer with the unit tests. FUZZ_SEED=0: another way each time, FUZZ_SECONDS: longer.
FUZZ_SEED ?= 1
FUZZ_SECONDS ?= 20
test-fuzz: debian-build debian-test
	cmake --preset asan > /dev/null
	cmake --build build/asan
	ls build/asan/cpp_store/fuzz/*_fuzz | xargs -P $$(nproc) -I % sh -ec 'name=$$(basename % _fuzz); \
	    mkdir -p build/asan/found/$$name; \
	    % -seed=$(FUZZ_SEED) -max_total_time=$(FUZZ_SECONDS) -timeout=60 -print_final_stats=0 -verbosity=0 \
	        build/asan/found/$$name cpp_store/fuzz/corpus/$$name'

# The wheel that setup built, made portable, in an environment that has nothing else.
test-wheel: $(VENV)/.installed-release
	rm -rf build/portable
	PATH=$(CURDIR)/$(BIN):$$PATH auditwheel repair --wheel-dir build/portable dist/setup/*.whl
	$(BIN)/python tests/wheel_smoke.py build/portable/*.whl

# No part of `make test`: minutes, and Torch is large. PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# takes the one without CUDA.
test-backends: $(addprefix test-backend-,jax torch)

test-backend-%: setup
	[ -x build/backends/$*/bin/pip ] || $(PYTHON) -m venv build/backends/$*
	build/backends/$*/bin/pip install --quiet --disable-pip-version-check \
	    "$$(echo dist/setup/*.whl)[mpich]" "keras>=3.8" hypothesis pytest pytest-timeout $*
	KERAS_BACKEND=$* build/backends/$*/bin/python -m pytest tests/transfer_nas/training \
	    tests/transfer_nas/test_trainer.py tests/graph_meta/test_keras_io.py

# A source distribution and, built from it, a portable wheel: for glibc as old as this system's.
release: $(VENV)/.installed-release
	rm -rf dist/release build/release-wheel
	PATH=$(CURDIR)/$(BIN):$$PATH python -m build --outdir build/release-wheel .
	PATH=$(CURDIR)/$(BIN):$$PATH auditwheel repair --wheel-dir dist/release build/release-wheel/*.whl
	cp build/release-wheel/*.tar.gz dist/release
	$(BIN)/python tests/wheel_smoke.py dist/release/*.whl
	ls -l dist/release

# What was released, installed and used by nothing but the tutorial's own lines, in an empty directory: 15 minutes at most.
walk: release setup-dev
	$(BIN)/python tests/docs/walk.py dist/release/*.whl

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	clang-format-14 --dry-run --Werror $(CPP_FILES)

format: setup-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	clang-format-14 -i $(CPP_FILES)

clean:
	rm -rf build dist $(VENV)/.installed*

# pip says nothing but the names and sizes of large files.
PIP := $(BIN)/pip --disable-pip-version-check
define pip_install
$(PIP) install $(1) | sed -nu 's/^ *\(Downloading\|Using cached\) \(.* MB)\)$$/    \2/p'
endef

# The project is installed as users get it, not editable: the tests see what a wheel would contain.
$(VENV)/.installed: dist/setup/.built
	@echo 'Python packages for a search into $(VENV) (TensorFlow, Keras, MPICH): 0.8 GB to download, 2.8 GB on disk, one to ten minutes, unless they are there'
	@$(call pip_install,"$$(echo dist/setup/*.whl)[recommended]")
	@$(PIP) install --quiet --no-deps --force-reinstall dist/setup/*.whl
	@touch $@

# What tests, checks, the documentation, releases and benchmarks need besides: the extras of pyproject.toml by these names.
$(VENV)/.installed-%: pyproject.toml | $(VENV)/.installed
	@echo 'Python packages for developers into $(VENV) ($*): at most 0.4 GB to download, 1.3 GB on disk, one to five minutes'
	@$(call pip_install,"$$(echo dist/setup/*.whl)[$*]")
	@touch $@

dist/setup/.built: $(SOURCES) | debian-build $(BIN)/pip
	@echo 'compiling the C++ part: two to five minutes on two cores, once'
	@rm -rf dist/setup
	@$(PIP) wheel --quiet --no-deps --wheel-dir dist/setup .
	@touch $@

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

# Without the right to install, says the one line that an administrator must run.
define install_debian
missing=$$(for package in $(1); do \
    dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || echo $$package; done | xargs); \
if [ -n "$$missing" ]; then \
    if [ "$$(id -u)" = 0 ]; then sudo=; \
    elif sudo -n true 2>/dev/null; then sudo=sudo; \
    else echo "make: these Debian packages are missing; an administrator must run:" >&2; \
         echo "    sudo apt-get install -y $$missing" >&2; exit 1; fi; \
    echo "installing Debian packages: $$missing"; \
    $$sudo apt-get update -qq; \
    LC_ALL=C apt-get install --assume-no $$missing 2> /dev/null | grep -E '^(Need to get|After this)' || true; \
    DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq $$missing > /dev/null; \
fi
endef

debian-build:
	@$(call install_debian,$(DEBIAN_BUILD))

debian-test:
	@$(call install_debian,$(DEBIAN_TEST))
