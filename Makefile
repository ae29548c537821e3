# make demo    set up, run the quickstart sweep, print the paths of its results
# make test    set up, lint, run the tests
# make slow    run the long tests
# make mutants FILES="densevit/train/step.py ..."    mutation testing: do the tests of these files find small faults?
# make tracking    test the mirror with a real MLflow server on PostgreSQL, and the MLflow UI in Chromium
# make ray-cluster    test sweeps on a real Ray cluster of two nodes, which it starts and stops
# make slurm-cluster    test sweeps and faults on a real Slurm; needs root on Debian, sets up and breaks a cluster
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
# Processes of the tests: twice the processors, since many tests wait for other processes.
WORKERS ?= 4
COUNT ?= 30
BIN = $(VENV)/bin
# Many containers set it. Each process would then compile all its modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test tracking ray-cluster slurm-cluster lint slow mutants constraints clean

demo: $(VENV)/.installed
	$(BIN)/densevit-sweep sweeps/quickstart.yaml --jobs $(JOBS)

test: lint
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

# Tests that leave Slurm intact run in parallel; those that break it run one after another.
slurm-cluster: export DENSEVIT_REQUIRE_SLURM = 1
slurm-cluster: $(VENV)/.installed
	slurm/local-cluster.sh with $(BIN)/pytest -n 4 --dist worksteal -m "cluster and not breaks and not slow" tests/cluster
	slurm/local-cluster.sh with $(BIN)/pytest -m "breaks and not slow" tests/cluster

tracking: $(VENV)/.installed
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "tracking and not slow" tests/tracking

ray-cluster: $(VENV)/.installed
	$(BIN)/pytest -m "ray and not slow" tests/ray

slow: $(VENV)/.installed
	slurm/local-cluster.sh with $(BIN)/pytest -m slow

# COUNT mutants of each file; TESTS names the tests if name and import do not find them.
mutants: $(VENV)/.installed
	$(BIN)/python bench/mutants.py $(FILES) --count $(COUNT) --jobs $(JOBS) $(if $(TESTS),--tests $(TESTS))

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

# Rebuilt only if the dependencies change, so that a second call starts at once.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is required; choose one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "cannot create a virtual environment; on Debian: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[test]'
	@# Compile only the modules that a run and its mirror import; most others are never used.
	$(BIN)/python -c "import importlib, densevit.cli.main, densevit.tracking.__main__, mlflow.store.tracking.sqlalchemy_store; \
		from densevit.launch.ray.fork_server import PRELOADED; list(map(importlib.import_module, PRELOADED))"
	touch $@

constraints: $(VENV)/.installed
	{ echo "# The tested set: what \`make\` installs. Regenerate with \`make constraints\` after a change in setup.cfg."; \
	  $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.tmp
	mv constraints.tmp constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info
