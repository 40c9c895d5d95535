# Every target first sets up what it needs in .venv, once: `make test` on a fresh clone is enough.
PYTHON ?= python3
TORCH ?= 2.13.0
TORCH_INDEX ?=
CUDA_TORCH ?= 2.14.1
CUDA_ARCH_LIST ?= 9.0
CXX ?= g++
MINUTES ?= 5
ARGS ?=

RUN := .venv/bin/python
SIDE_BY_SIDE := -n auto --maxprocesses 8 --dist worksteal
PYTEST := $(RUN) -m pytest $(SIDE_BY_SIDE)
READY := .venv/ready-torch-$(TORCH)
NATIVE := $(shell find csrc -type f 2>/dev/null)
FORMATTED := $(shell find csrc tests \( -name '*.h' -o -name '*.cpp' -o -name '*.cu*' \) 2>/dev/null)
SANITIZED := $(patsubst %.cpp,build/sanitize/%.o,$(wildcard csrc/cpu/*.cpp tests/core/*.cpp) \
	$(filter-out %/torch_cuda.cpp,$(wildcard tests/emulation/*.cpp)))
# Without use-after-scope and null checks: the first makes the compiler 20 times slower on inlined
# SIMD temporaries, the second is a crash anyway.
SANITIZE := -std=c++17 -O1 -g1 -fsanitize=address,undefined -fno-sanitize=null \
	-fno-sanitize-recover=all -fno-sanitize-address-use-after-scope -fno-omit-frame-pointer \
	-fno-math-errno -fno-trapping-math -Wall -Wextra -Werror -Wno-psabi -Wno-unknown-pragmas \
	-Itests/emulation/include -Icsrc

.PHONY: help test test-all demo build lint format sanitize emulate mutate fuzz ulp cuda cuda-torch \
	gpu-check check-all bench clean
.DELETE_ON_ERROR:

help:  ## list the targets and the variables
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo
	@echo '  PYTHON=python3.12   the Python to make .venv with (3.10 or newer)'
	@echo '  TORCH=2.11.0        another PyTorch than $(TORCH)'
	@echo '  TORCH_INDEX=https://download.pytorch.org/whl/cpu   on Linux: PyTorch without CUDA, much smaller'
	@echo '  CUDA_TORCH=2.11.0   the PyTorch of cuda-torch, instead of $(CUDA_TORCH)'
	@echo '  CUDA_ARCH_LIST=     what setup.py builds for, in cuda-torch, instead of $(CUDA_ARCH_LIST)'
	@echo '  ARGS="-k dropout"   options for what runs: tests, demo, faults, benchmark, ...'
	@echo '  ARGS="--steps build timing"   for gpu-check: only these steps; --minutes limits them all'

test: .venv/built  ## run the tests
	$(PYTEST) $(ARGS)

test-all: .venv/built  ## run the tests with every combination of activation, dtype and option
	$(PYTEST) --all $(ARGS)

demo: .venv/built  ## train on handwritten digits, with and without the fused operator
	$(RUN) -m actreg_ext demo $(ARGS)

build: .venv/built  ## compile what changed

lint: .venv/built  ## check format, style and types
	.venv/bin/clang-format --dry-run -Werror $(FORMATTED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: $(READY)  ## format everything in place
	.venv/bin/clang-format -i $(FORMATTED)
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

sanitize: build/sanitize/test_core  ## run the torch-free C++ under the address and undefined-behaviour sanitizers
	$<

emulate: .venv/built  ## run the tests on the CUDA kernels, executed on the CPU: no GPU needed
	$(RUN) tools/emulate.py $(SIDE_BY_SIDE) $(ARGS)

cuda: $(READY)  ## compile the CUDA kernels by nvcc alone and read their machine code: no GPU needed
	$(RUN) tools/cuda_report.py $(ARGS)

cuda-torch: build/cuda-torch/.venv  ## build everything against a PyTorch for CUDA, and test it without a GPU
	git ls-files -z -co --exclude-standard | xargs -0 cp --parents -ut build/cuda-torch
	cd build/cuda-torch && ACTREG_CUDA=1 TORCH_CUDA_ARCH_LIST="$(CUDA_ARCH_LIST)" .venv/bin/python -m pip install -e '.[test]'
	cd build/cuda-torch && .venv/bin/python -m pytest tests/test_fake_cuda.py tests/test_doctor.py $(ARGS)

check-all: test-all lint sanitize  ## before a release: all tests, faults, GPUs and floats; hours
	$(RUN) tools/emulate.py $(SIDE_BY_SIDE) --all
	$(RUN) tools/mutate.py --all
	$(RUN) tools/cuda_report.py --arch all
	$(RUN) -m tools.ulp
	git diff --exit-code docs/accuracy.md
	$(MAKE) cuda-torch CUDA_ARCH_LIST= ARGS=
	$(MAKE) fuzz ARGS=

gpu-check:  ## build, test, sanitize and time on a GPU, with the PyTorch that $(PYTHON) has: no network needed
	$(PYTHON) tools/gpu_check.py $(ARGS)

mutate: .venv/built  ## plant faults and see the tests catch them
	$(RUN) tools/mutate.py $(ARGS)

fuzz: .venv/built  ## run random programs, other ones in each round, until MINUTES are over
	end=$$(($$(date +%s) + 60 * $(MINUTES))); status=0; \
	while FUZZ=1 $(RUN) -m pytest tests/test_programs.py $(ARGS) || status=1; \
	[ $$(date +%s) -lt $$end ]; do :; done; exit $$status

ulp: .venv/built  ## try every float, and write the largest errors to docs/accuracy.md
	$(RUN) -m tools.ulp $(ARGS)

bench: .venv/built  ## time the operator against eager PyTorch, torch.compile and the speed of the memory
	$(RUN) -m benchmarks $(ARGS)

clean:  ## remove what was built; .venv stays
	rm -rf build dist *.egg-info .venv/built actreg_ext/_build.py actreg_ext/_C.*.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache

# Set-up: once for each pyproject.toml, setup.py and TORCH.
$(READY): pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("actreg_ext needs Python 3.10 or newer, \
	and $(PYTHON) is %d.%d; name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" % sys.version_info[:2])'
	test -x $(RUN) || $(PYTHON) -m venv .venv
	rm -f .venv/ready-*
	$(RUN) -m pip install --upgrade pip
	$(RUN) -m pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==$(TORCH)
	$(RUN) -m pip install -e '.[bench,demo,dev,models,test]'
	$(RUN) -m pip install --no-deps timm torchvision # their dependencies would replace torch
	touch $@

# The objects are those of the editable install above: only what changed since is compiled.
.venv/built: $(READY) $(NATIVE)
	$(RUN) setup.py build_ext --inplace
	touch $@

build/cuda-torch/.venv:
	@mkdir -p $(@D)
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --upgrade pip
	$@/bin/python -m pip install torch==$(CUDA_TORCH) || { rm -rf $@; false; }

build/sanitize/test_core: $(SANITIZED)
	$(CXX) $(SANITIZE) $^ -o $@

build/sanitize/tests/emulation/%.o: SANITIZE += -DACTREG_DEVICE_MATH
build/sanitize/%.o: %.cpp $(NATIVE) $(wildcard tests/core/*.h tests/emulation/*.h tests/emulation/include/*.h)
	@mkdir -p $(@D)
	$(CXX) $(SANITIZE) -c $< -o $@
