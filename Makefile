# Two commands do everything on a fresh machine with Python 3.11 and make:
#   make demo     sets up, starts a node and shows its main job, from scan to similar case  (KEEP=1 leaves it running)
#   make test     sets up, installs the DICOM tools that the tests talk to, and runs every check
# and `make serve` runs a node on port 11112 with its data in ./tharsis-data.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests often wait for peers and processes, so three at a time do well on two processors. A file stays with one process,
# which shares what its tests share; tests/conftest.py has the long ones begin first.
PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder
# Threads of OpenBLAS would wait for more work by computing nothing, on processors that other tests need.
export OPENBLAS_THREAD_TIMEOUT := 4
# Hundreds of processes are started: each would compile everything that it imports, where this is set.
unexport PYTHONDONTWRITEBYTECODE
# All tests run on the node's own transport; those of DIMSE once more on the other one that the settings offer.
# tests/test_both_transports.py knows which files are left out, and why.
DIMSE := storage transport cancel get limits courier find move negotiated_find sub_associations commitment access_control tls \
	similarity_query view_title view_similarity ingest_title deidentified_export asking client commitment_client \
	store_rows disk_full private_sop_classes query_charset retrieve_dcmtk wire wire_peers \
	routing_peers routing_commitment retrieve_command fuzz burst acceptors process_node shared_files objects_travel \
	large_objects kill conformance_scoreboard
ON_PYNETDICOM := --transport pynetdicom $(foreach part,$(DIMSE),tests/test_$(part).py)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo serve test suite beside check peers clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -4

demo: $(VENV)/installed
	$(BIN)/tharsis demo $(if $(KEEP),--keep)

serve: $(VENV)/installed
	exec $(BIN)/tharsis serve $(if $(CONFIG),--config $(CONFIG))

test: $(VENV)/installed-dev peers
	$(BIN)/ruff check .
	$(MAKE) --no-print-directory --jobs 2 suite beside

suite:
	$(BIN)/python -m pytest $(PARALLEL)
	$(BIN)/python -m pytest $(PARALLEL) $(ON_PYNETDICOM)

# What takes one processor for minutes, and has no part in how the tests run.
beside:
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	.ci/try-wheel $(BIN)/python

# The quick half of `make test`, for while you work.
check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

peers:
	.ci/install-peers

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tharsis needs Python 3.11 or newer; this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing Tharsis and its libraries into $(VENV) (a minute or two the first time)"
	$(INSTALL) --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing Tharsis and what its tests need into $(VENV)"
	$(INSTALL) --editable '.[dev]'
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build dist demo-output .pytest_cache .mypy_cache .ruff_cache
