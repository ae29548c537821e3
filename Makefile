# make demo    set up, run the quickstart sweep, say where its results are
# make test    set up, lint, run the tests
# make slow    the long tests
# make mutants FILES="densevit/step.py ..."    do the tests of these files see small faults in them?
# make tracking    the mirror against a real MLflow server on PostgreSQL, and MLflow's pages in Chromium
# make ray-cluster    sweeps on a real Ray of two nodes, which it starts and stops
# make slurm-cluster    sweeps on a real Slurm, and its faults; root on Debian, sets up and breaks a cluster
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
COUNT ?= 30
BIN = $(VENV)/bin

.PHONY: demo test tracking ray-cluster slurm-cluster lint slow mutants constraints clean

demo: $(VENV)/.installed
	$(BIN)/densevit-sweep sweeps/quickstart.yaml --jobs $(JOBS)

test: lint
	$(BIN)/pytest -n $(JOBS) --dist worksteal

# Tests that only wait for Slurm run side by side; those that break it run alone, one after another.
slurm-cluster: export DENSEVIT_REQUIRE_SLURM = 1
slurm-cluster: $(VENV)/.installed
	slurm/local-cluster.sh with $(BIN)/pytest -n 4 --dist worksteal -m "cluster and not breaks and not slow" tests/cluster
	slurm/local-cluster.sh with $(BIN)/pytest -m "breaks and not slow" tests/cluster

tracking: $(VENV)/.installed
	$(BIN)/pytest -n $(JOBS) --dist loadfile -m "tracking and not slow" tests/tracking

ray-cluster: $(VENV)/.installed
	$(BIN)/pytest -m "ray and not slow" tests/ray

slow: $(VENV)/.installed
	slurm/local-cluster.sh with $(BIN)/pytest -m slow

# COUNT mutants of each file; TESTS where the tests are not to be found by name and import.
mutants: $(VENV)/.installed
	$(BIN)/python bench/mutants.py $(FILES) --count $(COUNT) --jobs $(JOBS) $(if $(TESTS),--tests $(TESTS))

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Made again when the dependencies change and not before, so that a second call starts at once.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; say which with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "No virtual environment could be made; on Debian: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

constraints: $(VENV)/.installed
	{ echo "# The tested set: what \`make\` installs. Regenerate with \`make constraints\` after a change in setup.cfg."; \
	  $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.tmp
	mv constraints.tmp constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info
