# The interface of the checkout. Each target makes what it needs; `make test` and `make demo` work from a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
EXTRA ?= dev
# The versions that the tests were last passed with; `make CONSTRAINTS= ...` takes whatever is newest.
CONSTRAINTS ?= constraints.txt
JOBS ?= 2
BROWSER := chromium chromium-driver
NO_BROWSER := The tests of the report in a browser are left out. To have them: sudo apt-get install $(BROWSER)

.PHONY: demo test test-slow coverage browser check bench docs results clean

# A .venv is good if it was made by this Python, for these requirements, at this place, and still imports.
WANTED = $(shell cat pyproject.toml $(CONSTRAINTS) Makefile | cksum) $(shell $(PYTHON) -c 'import sys; print(sys.version_info[:2], sys.base_prefix)') $(CURDIR)

$(STAMP): FORCE
	@if [ -f $(STAMP) ] && [ "$$(cat $(STAMP))" = "$(WANTED)" ] && $(BIN)/python -c 'import longtail, torch, pytest' 2>/dev/null; then :; else \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "longtail needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }; \
	$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing: install it (Debian and Ubuntu: apt install python3-venv) and run make again."; exit 1; }; \
	echo "Making $(VENV) (a few minutes the first time: PyTorch is large)"; \
	rm -rf $(VENV) && $(PYTHON) -m venv $(VENV) && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[$(EXTRA)]' && \
	echo "$(WANTED)" > $(STAMP); fi

FORCE:

demo: $(STAMP)  ## train ce, smcl and concutmix on the embedded images and compare them
	rm -rf runs/demo
	$(BIN)/python -m longtail study studies/demo.yaml --out runs/demo --jobs 2
	$(BIN)/python -m longtail report runs/demo/ce-s0 runs/demo/smcl-s0 runs/demo/concutmix-s0 --out runs/demo/report.html

check: $(STAMP)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check  ## every check and the default tests
	$(BIN)/python -m pytest -n $(JOBS) -q

test-slow: $(STAMP) browser  ## kills, fuzz, accuracy, the report in a browser; names what could not be run, and why
	@failed=0; \
	$(BIN)/python -m pytest -q -rs -o timeout=1800 -m "slow and alone" || failed=1; \
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -q -rs -o timeout=1800 -m "slow and not alone" || failed=1; \
	exit $$failed

browser:  ## what tests/test_browser.py needs: installed where that can be done without asking, else the command is told
	@if command -v chromedriver >/dev/null && { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null; then :; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	echo "Installing chromium and its driver" && apt-get update -qq && apt-get install -y -qq --no-install-recommends $(BROWSER) >/dev/null || echo "$(NO_BROWSER)"; \
	else echo "$(NO_BROWSER)"; fi

coverage: $(STAMP)  ## lines and branches that the default and the slow tests run, and whether they are enough
	rm -f .coverage .coverage.*
	$(BIN)/python -m coverage run -m pytest -q -n $(JOBS) -o timeout=1800
	$(BIN)/python -m coverage run -m pytest -q -n $(JOBS) --dist loadgroup -m slow -o timeout=1800 --ignore tests/test_speed.py
	$(BIN)/python -m coverage combine -q
	$(BIN)/python benchmarks/covered.py

bench: $(STAMP)  ## the real step beside the bare network
	$(BIN)/python benchmarks/throughput.py

docs: $(STAMP)  ## the site, into docs/_build; a warning ends it
	$(BIN)/python -m sphinx -W -n --keep-going -q docs docs/_build
	@echo "docs/_build/index.html"

results: $(STAMP)  ## docs/results.md from results/
	$(BIN)/python benchmarks/results.py table

clean:
	rm -rf $(VENV) runs/demo docs/_build .mypy_cache .ruff_cache .pytest_cache .coverage .coverage.*
