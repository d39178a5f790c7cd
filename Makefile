# Everything a newcomer needs: `make demo`, `make test`. The environment is made once, in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BUILT := $(VENV)/.built
FFCV := $(VENV)/.ffcv
NATIVE := setup.py CMakeLists.txt $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.txt' 2>/dev/null)

.PHONY: demo test stress lint format build ffcv clean

demo: $(BUILT)
	@echo "[3/3] training and comparing on real digits"
	$(BIN)/ltat demo

test: $(BUILT) $(FFCV)
	@echo "[3/3] running the tests"
	@# Tiny tensors: two processes, not two threads. Sorted by their number of tests, the longest files would come last.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

stress: $(BUILT)
	@echo "[3/3] two runs in one folder, damaged states, killed ranks, a bare machine; --rounds N, --long and --kills N do more"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.stress.two_runs
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.stress.corrupted_state
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.stress.killed_ranks
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.stress.bare_machine

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' | xargs $(BIN)/clang-format -i

build: $(BUILT)

ffcv: $(FFCV)

$(READY): pyproject.toml
	@echo "[1/3] making the environment $(VENV) (torch is a large download)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ltat needs Python 3.11 or newer and $(PYTHON) is " + sys.version.split()[0] + "; name another with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@$(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["dev"], sep="\n")' > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement $(VENV)/requirements.txt
	@touch $@

$(BUILT): $(READY) $(NATIVE)
	@echo "[2/3] building the native kernels"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@$(BIN)/ltat doctor | grep '^native'
	@touch $@

# Optional: without FFCV all else works, and its tests are skipped unless LTAT_FFCV=1, which also says yes to the system
# packages that it needs.
$(FFCV): ltat/install_ffcv.py $(READY) | $(BUILT)
	@if $(BIN)/python -m ltat.install_ffcv $(if $(filter 1,$(LTAT_FFCV)),--yes); then touch $@; else test "$$LTAT_FFCV" != 1; fi

clean:
	rm -rf $(VENV) build dist *.egg-info ltat/*.so
