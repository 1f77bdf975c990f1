# make demo         train on the handwritten digits with every framework
# make test         run the tests and the doctests
# make test-wheels  run the tests once more against built wheels, outside the source tree
# make lint         ruff, strict mypy, import-linter
# make fuzz         random pipelines and damaged states, ten times as many as make test tries; takes about half an hour
# make soak         load for five minutes while workers are killed; nothing may be lost or doubled
# make bench        measure batchkit against its peers (benchmarks/README.md)
# make install      only set up .venv; the targets above do it themselves
# make clean        remove what these targets made
#
# PYTHON=python3.12  the Python (3.10 or newer) to make .venv from
# ARGS="-k shuffle"  handed on to pytest, the demo or the benchmarks

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_PEERS := $(VENV)/.installed-peers
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq
PLUGINS := plugins/batchkit-torch plugins/batchkit-tensorflow plugins/batchkit-jax
WHEELS := .wheels
# What the tests read of the source tree; the packages themselves come from the wheels.
TREE := pyproject.toml conftest.py README.md tests docs examples
# The core's tests that would see a file, a dependency, a name or an entry point missing from a wheel.
SHIPPED := $(foreach name,bench cli config examples explain generators loader packaging pipeline plugins processes report sources testing_kit verify writing_a_backend,tests/test_$(name).py)
SHIPPED_PLUGINS := $(foreach name,plugin loader dataset,plugins/*/tests/test_*_$(name).py)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-wheels lint fuzz soak bench clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

install: $(INSTALLED)

$(INSTALLED): pyproject.toml $(PLUGINS:%=%/pyproject.toml) $(wildcard requirements/*.txt)
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit("batchkit needs Python 3.10 or newer; $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.12" % v[:2])'
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing batchkit, its plugins and their tools into $(VENV)"
	@$(PIP) -c requirements/constraints.txt -r requirements/dev.txt -e . $(PLUGINS:%=-e %)
	@left_out=; \
	for framework in torch tensorflow jax grain; do \
	  echo "installing $$framework"; \
	  if ! $(PIP) -c requirements/constraints.txt -r requirements/$$framework.txt 2> $(VENV)/$$framework.log; then \
	    echo "$$framework cannot be installed on this Python, and is left out:"; \
	    sed 's/^/    /' $(VENV)/$$framework.log; \
	    left_out="$$left_out $$framework"; \
	  fi; \
	done; \
	if test -n "$$left_out" && test -n "$$CI"; then echo "under CI every framework must be there; missing:$$left_out"; exit 1; fi; \
	echo "left out:$${left_out:- nothing}" > $(INSTALLED)

$(INSTALLED_PEERS): $(INSTALLED) benchmarks/requirements.txt benchmarks/constraints.txt
	@echo "installing the peers of the benchmarks"
	@$(PIP) -c benchmarks/constraints.txt -r benchmarks/requirements.txt
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/python examples/digits/demo.py $(ARGS)

test: $(INSTALLED)
	@$(BIN)/python -m pytest $(ARGS)

# In an environment of its own, which has only what the wheels ask for: first the core's
# tests, so that a file or a dependency missing from a wheel is noticed; then, with the
# frameworks of .venv on the path behind it, those of the plugins.
test-wheels: $(INSTALLED)
	@rm -rf $(WHEELS) && mkdir -p $(WHEELS)/tree/plugins
	@for project in . $(PLUGINS); do $(BIN)/python -m build --wheel --no-isolation --outdir $(WHEELS)/dist $$project > $(WHEELS)/build.log 2>&1 || { cat $(WHEELS)/build.log; exit 1; }; done
	@ls $(WHEELS)/dist
	@$(BIN)/python -m venv $(WHEELS)/venv
	@$(WHEELS)/venv/bin/python -m pip --disable-pip-version-check install -qq -c requirements/constraints.txt -r requirements/test.txt $(WHEELS)/dist/*.whl
	@cp -R $(TREE) $(WHEELS)/tree/
	@for plugin in $(PLUGINS); do mkdir -p $(WHEELS)/tree/$$plugin && cp -R $$plugin/tests $(WHEELS)/tree/$$plugin/; done
	cd $(WHEELS)/tree && ../venv/bin/python -m pytest -m "not checkout" -p no:cacheprovider $(SHIPPED)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$($(WHEELS)/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/frameworks.pth
	cd $(WHEELS)/tree && ../venv/bin/python -m pytest -m "not checkout" -p no:cacheprovider $(SHIPPED_PLUGINS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: $(INSTALLED)
	@$(BIN)/python -m pytest --hypothesis-profile=fuzz --timeout=0 tests/test_pipelines.py tests/test_state_fuzz.py $(ARGS)

soak: $(INSTALLED)
	@$(BIN)/python tests/soak.py $(ARGS)

bench: $(INSTALLED_PEERS)
	@$(BIN)/python benchmarks/foundation.py $(ARGS)
	@$(BIN)/python benchmarks/techniques.py $(ARGS)
	@$(BIN)/python benchmarks/engine.py $(ARGS)
	@$(BIN)/python benchmarks/sequences.py $(ARGS)
	@$(BIN)/python benchmarks/transforms.py $(ARGS)
	@$(BIN)/python benchmarks/autotune.py $(ARGS)

clean:
	rm -rf $(VENV) $(WHEELS) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache examples/digits/data examples/digits/out
