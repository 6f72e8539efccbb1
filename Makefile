# Everything a developer does here. `make` alone shows the list.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := .demo
export HF_HUB_DISABLE_TELEMETRY = 1
export HF_HUB_DISABLE_PROGRESS_BARS = 1

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-all test-lowest lint format proto proto-lint proto-check proto-baseline bench bench-smoke bench-peers clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# The versions of constraints.txt are installed; it names the CPU build's version of torch.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Narrows needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: $(INSTALLED) ## make .venv with everything a developer needs

demo: $(INSTALLED) ## the main job from nothing: export, index, serve, ask, stop
	$(BIN)/python -m narrows_export.demo --work $(DEMO)

serve: $(INSTALLED) ## as demo, but leave the server running in the foreground
	$(BIN)/python -m narrows_export.demo --work $(DEMO) --serve

test: $(INSTALLED) ## lint, then every test but the slow ones and the clients'
	$(MAKE) --no-print-directory lint proto-check
	$(BIN)/python -m pytest -m "not slow and not clients"

test-all: $(INSTALLED) ## lint and every test
	$(MAKE) --no-print-directory lint proto-check clients
	$(BIN)/python -m pytest

.PHONY: clients test-clients
test-clients: $(INSTALLED) clients ## build the clients in Node and Go, and test them against a real server
	$(BIN)/python -m pytest -m clients tests/clients

clients: ## build and unit-test clients/node and clients/go from clean; installs Go and protoc where missing
	sh clients/install_tools.sh
	cd clients/node && npm ci && npm run build && npm test
	$(MAKE) --no-print-directory -C clients/go clean build test

test-lowest: ## every test but the slow ones, with the lower bounds of pyproject.toml
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt \
	  --editable '.[demo,eval,bench]' buf-bin pytest pytest-timeout hypothesis
	.venv-lowest/bin/python -m pytest -m "not slow and not clients"

lint: $(INSTALLED) proto-lint ## ruff, mypy --strict, buf, and whether the README shows the recorded results
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks
	$(BIN)/mypy proto
	$(BIN)/narrows bench report --check

format: $(INSTALLED) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# An older protoc on purpose: its stubs work with every protobuf and grpcio that pyproject.toml allows.
PROTO_BIN := .venv-proto/bin
$(PROTO_BIN)/protoc-gen-mypy:
	$(PYTHON) -m venv .venv-proto
	$(PROTO_BIN)/python -m pip install --quiet --disable-pip-version-check grpcio-tools==1.78.0 mypy-protobuf==3.7.0 'setuptools<81'

proto: $(INSTALLED) $(PROTO_BIN)/protoc-gen-mypy ## regenerate runtime/narrows/v1 and docs/api.md from proto/
	PATH=$(PROTO_BIN):$$PATH $(PROTO_BIN)/python -m grpc_tools.protoc -I proto --python_out=$(or $(OUT),runtime) \
	  --grpc_python_out=$(or $(OUT),runtime) --mypy_out=quiet:$(or $(OUT),runtime) \
	  --mypy_grpc_out=quiet:$(or $(OUT),runtime) proto/narrows/v1/retrieval.proto
	$(BIN)/buf build proto --output - | $(BIN)/python proto/make_docs.py > $(or $(OUT),docs)/api.md

proto-lint: $(INSTALLED) ## buf: style, comments, and no breaking change since proto/baseline.binpb
	$(BIN)/buf lint proto
	$(BIN)/buf breaking proto --against proto/baseline.binpb

proto-check: ## fail if the committed stubs or docs/api.md are not those of proto/
	rm -rf .venv-proto/out && mkdir -p .venv-proto/out
	$(MAKE) --no-print-directory proto OUT=.venv-proto/out
	for file in .venv-proto/out/narrows/v1/*; do diff -q $$file runtime/narrows/v1/$$(basename $$file) || exit 1; done
	diff -q .venv-proto/out/api.md docs/api.md

proto-baseline: $(INSTALLED) ## what proto-lint compares with; see docs/contributor.md before renewing it
	$(BIN)/buf build proto --exclude-source-info --output proto/baseline.binpb

BENCH = $(BIN)/narrows bench run --bundle $(DEMO)/minilm.bundle --index $(DEMO)/demo.index
bench: demo ## the demo's MiniLM under load on this machine: about 15 minutes; the result goes to .demo/bench.json
	$(BENCH) --out $(DEMO)/bench.json

bench-smoke: demo ## the same in two minutes: for errors, not for times
	$(BENCH) --quick

bench-peers: demo ## Narrows beside Triton, mosec, LitServe, infinity and others: over half an hour, 5 GB of environments
	$(BIN)/python -m benchmarks.peers.environments
	$(BIN)/python -m benchmarks.peers.run --bundle $(DEMO)/minilm.bundle

clean: ## delete what make made
	rm -rf $(VENV) .venv-proto .venv-lowest .venv-peers $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	rm -rf clients/node/node_modules clients/node/gen clients/node/dist
	$(MAKE) --no-print-directory -C clients/go clean
