# Two commands: `make demo` and `make test`. The rest: lab, serve (the search panel by itself), lint, notebooks (refresh
# the committed outputs), faults (all of them, a hundred kills too, counted in docs/reliability.md), servers (real ones,
# compared in docs/servers.md), clean.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test lab serve lint notebooks faults servers clean

demo: $(VENV)/.installed
	$(BIN)/python -m trsllava_utils run sample

test: $(VENV)/.test-installed
	OMP_NUM_THREADS=1 TQDM_DISABLE=1 $(BIN)/python -m pytest --nbval-lax notebooks tests -n 2 --dist loadfile

lab: $(VENV)/.installed
	$(BIN)/jupyter lab --notebook-dir . notebooks/index.ipynb

serve: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements-test.txt voila
	$(BIN)/python -m trsllava_utils serve $(or $(DATASET),sample)

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: $(VENV)/.test-installed
	TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False notebooks/*.ipynb
	$(BIN)/ruff format notebooks

faults: $(VENV)/.test-installed
	FAULT_TABLE=docs/reliability.md $(BIN)/python -m pytest tests/faults -m ""

servers: $(VENV)/.test-installed
	SERVER_TABLE=docs/servers.md $(BIN)/python -m pytest tests/servers -m servers

# Made once, and again only when the pins or the package's metadata change.
$(VENV)/.installed: requirements.txt requirements-no-deps.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit('Python 3.10 or later is needed, this is ' + sys.version.split()[0] if sys.version_info < (3, 10) else 0)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-no-deps.txt --editable .
	touch $@

$(VENV)/.test-installed: $(VENV)/.installed requirements-test.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-test.txt
	touch $@

clean:
	rm -rf $(VENV) .servers data/sample/derived
