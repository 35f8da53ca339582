# The only list of commands. `make help` prints it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HOST_STAMP := $(VENV)/.host-packages
DEV_INPUTS := requirements-dev.txt constraints.txt core/pyproject.toml $(wildcard plugins/*/pyproject.toml)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check fmt bench soak bench-peers conformance proto docs clean

help:  ## print this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(HOST_STAMP) $(STAMP)  ## make .venv with polypod, its plugins and the tools, at pinned versions

$(HOST_STAMP): tests/host-packages.txt
	@PYTHON="$(PYTHON)" sh tests/host-packages.sh tests/host-packages.txt $@

$(STAMP): $(DEV_INPUTS) | $(HOST_STAMP)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --timeout 30 hatchling editables -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --timeout 30 --no-build-isolation -r requirements-dev.txt -c constraints.txt
	@if pkg-config --exists libvirt 2>/dev/null; then \
		$(BIN)/pip install --quiet --disable-pip-version-check --timeout 30 libvirt-python -c constraints.txt \
			|| echo "libvirt's Python binding could not be built: tests of virtual machines will say so"; \
	else echo "no libvirt-dev and pkg-config here: tests of virtual machines will say so"; fi
	touch $@

demo: setup  ## the main job: a server, an image, a pod with logs and exec, through the CRI socket
	$(BIN)/python -m demo $(ARGS)

test: setup  ## every test that this host can run; prints what it had to skip, and why
	$(BIN)/python tests/lanes.py $(ARGS)

check: setup  ## format, lint, types, import contracts, and the tests of the tree itself
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/meta

fmt: setup  ## format the code and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## this host's figures, and its handlers side by side; a table and bench/out/*.json (ARGS=--quick, ARGS=--help)
	$(BIN)/python -m bench $(ARGS)

soak: setup  ## 2,000 pods with exec, attach and port-forward, 8 at once: no error, nothing left, memory flat (ARGS="--pods 200")
	$(BIN)/python -m bench.soak $(ARGS)

bench-peers: setup  ## the same client on polypod and on Debian's containerd in turns; ratios and bench/out/peers-*.json (ARGS=--quick)
	$(BIN)/python -m bench.peers $(ARGS)

conformance: setup  ## the CRI suite on each handler, with a report of what each declares (HANDLERS="runc vm", ARGS=--help)
	PYTHONPATH=tests $(BIN)/python -m conformance --handlers "$(HANDLERS)" $(ARGS)

proto: setup  ## generate the code of messages from proto/
	$(BIN)/python -m grpc_tools.protoc -Ipolypod/api/v1=proto/runtime/v1 --python_out=core \
		--pyi_out=core --grpc_python_out=core polypod/api/v1/api.proto
	$(BIN)/python -m grpc_tools.protoc -Ipolypod_nri/wire=proto/nri/v1alpha1 --python_out=plugins/nri \
		--pyi_out=plugins/nri polypod_nri/wire/api.proto polypod_nri/wire/envelope.proto
	sed -i '/^ *None: /d' plugins/nri/polypod_nri/wire/api_pb2.pyi  # a value of NRI's that no Python can spell

docs: setup  ## write the generated pages (state diagram, table of backends)
	$(BIN)/python -m polypod.lifecycle.diagram > docs/lifecycle-states.md
	$(BIN)/python -m polypod.boot.backends_page > docs/backends.md

clean:  ## remove .venv and what tools left
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis bench/out tests/conformance/out
