# `make demo` and `make test` work on a fresh Linux machine with Python >= 3.11; a second call installs nothing.
PYTHON ?= python3
RUN := .venv/bin/python
INSTALLED := .venv/.installed
NEEDS := constraints.txt requirements.txt $(wildcard packages/*/pyproject.toml)

.PHONY: demo test fast check clean

demo: $(INSTALLED)
	$(RUN) tools/run.py --modality shape3d --task acd --folder runs/demo

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist worksteal --durations 15

fast: $(INSTALLED)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist worksteal -m "not slow"

check: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright

$(INSTALLED): $(NEEDS)
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --upgrade -q pip
	$(RUN) -m pip install -q -c constraints.txt -r requirements.txt
	touch $@

clean:
	rm -rf .venv runs .cache
