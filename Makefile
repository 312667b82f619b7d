# ConvServe's commands. Needs GNU make 3.81 or newer, a POSIX shell and Python 3.11 or newer (make PYTHON=python3.12 ...).
PYTHON ?= python3
MNIST ?=
BENCH = .venv-dev/bin/python -m benchmarks.serving --work "$(WORK)"
WORK ?= runs/bench
BENCHFLAGS ?=
FAULTSFLAGS ?=
SOAK_MINUTES ?= 60
SOAKFLAGS ?=
UV ?= .venv-dev/bin/uv
LOCK = $(UV) pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 \
	--no-header --no-emit-index-url $(LOCKFLAGS) pyproject.toml
SERVE = .venv/.installed
DEV = .venv-dev/.installed
CLIENTS = .venv-clients/.installed .venv-mlserver/.installed
FUZZ = .venv-fuzz/.installed
FUZZ_SECONDS ?= 60
OPS = .venv-ops/.installed
CONTAINER ?= docker
VARIANT ?= cpu
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' app/__init__.py)
IMAGE ?= convserve:$(VERSION)$(if $(filter cuda,$(VARIANT)),-cuda)
CUDA_BASE = docker.io/nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04
BASE ?= $(if $(filter cuda,$(VARIANT)),$(CUDA_BASE),docker.io/library/debian:bookworm-slim)
SOURCE ?=
OCI = org.opencontainers.image

export PIP_DISABLE_PIP_VERSION_CHECK = 1
.DEFAULT_GOAL := help
.PHONY: help serve test test-clients check format lock train-digits bench bench-peers faults fuzz soak image image-test k8s-check \
	sbom vulnerabilities clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

serve: $(SERVE) ## serve the model on port 8000 (settings: CONVSERVE_* in the environment)
	@exec .venv/bin/python -m app

test: $(DEV) ## run the tests
	@.venv-dev/bin/python -m pytest

test-clients: $(DEV) $(CLIENTS) ## run Triton's, KServe's and MLServer's clients, and schemathesis, against the service
	@.venv-dev/bin/python -m pytest tests/app/test_open_inference_clients.py tests/app/test_openapi.py

check: $(DEV) ## check format, lint and types; changes nothing
	@echo "Checking format, lint and types ..."
	@.venv-dev/bin/ruff format --check .
	@.venv-dev/bin/ruff check .
	@.venv-dev/bin/mypy app training tests

format: $(DEV) ## format the code and apply the safe lint fixes
	@.venv-dev/bin/ruff check --quiet --fix-only .
	@.venv-dev/bin/ruff format .

lock: $(DEV) ## write requirements/*.txt anew from pyproject.toml (newer versions: LOCKFLAGS=--upgrade)
	@echo "Resolving versions into requirements/serve.txt and requirements/dev.txt ..."
	@$(LOCK) --generate-hashes --output-file requirements/serve.txt
	@$(LOCK) requirements/serve-cuda.in --no-emit-package onnxruntime --constraints requirements/serve.txt \
		--generate-hashes --output-file requirements/serve-cuda.txt
	@$(LOCK) requirements/fuzz.in --constraints requirements/serve.txt --output-file requirements/fuzz.txt
	@$(LOCK) --extra training --extra dev --constraints requirements/serve.txt --output-file requirements/dev.txt
	@$(LOCK:pyproject.toml=requirements/operations.in) --output-file requirements/operations.txt

train-digits: ## train models/digits.onnx: make train-digits MNIST=folder
	@test -n "$(MNIST)" || { echo "Say where the digits are: make train-digits MNIST=folder" >&2; exit 1; }
	@test -d "$(MNIST)" || { echo "MNIST=$(MNIST) is not a directory." >&2; exit 1; }
	@$(MAKE) --no-print-directory $(DEV)
	@.venv-dev/bin/python -m training train "$(MNIST)" --recipe digits --out models/digits.onnx

bench: $(DEV) ## measure the service against the same code without HTTP (needs wrk; 15 minutes; BENCHFLAGS=--help)
	@$(BENCH) --peers none $(BENCHFLAGS)

bench-peers: $(DEV) ## the same with Mosec, LitServe, BentoML, MLServer, PyTriton and a tutorial's FastAPI (an hour, 4 GB in WORK)
	@$(BENCH) --peers all $(BENCHFLAGS)

faults: $(DEV) ## break the service in twelve ways and see what it bears (3 minutes; Linux)
	@.venv-dev/bin/python -m benchmarks.faults $(FAULTSFLAGS)

soak: $(DEV) ## load at 80 % of capacity, every answer checked, memory watched: make soak SOAK_MINUTES=60
	@.venv-dev/bin/python -m benchmarks.soak --minutes $(SOAK_MINUTES) $(SOAKFLAGS)

fuzz: $(FUZZ) ## fuzz what reads strangers' bytes, FUZZ_SECONDS=60 for each reader; then 100,000 bad requests
	@.venv-fuzz/bin/python -m tests.fuzz --seconds $(FUZZ_SECONDS)
	@.venv-fuzz/bin/python -m benchmarks.faults.bad_requests

image: ## build the container image: make image [VARIANT=cuda] [CONTAINER=podman] [BASE=...] [IMAGE=name:tag]
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(CONTAINER) build \
		$(if $(findstring podman,$(CONTAINER)),--format docker --timestamp "$$(git log -1 --format=%ct)") $(BUILDFLAGS) \
		--build-arg BASE=$(BASE) --build-arg VARIANT=$(VARIANT) --label $(OCI).base.name=$(BASE) \
		--label $(OCI).version=$(VERSION) --label $(OCI).revision="$$(git rev-parse HEAD)" \
		--label $(OCI).created="$$(git log -1 --format=%cI)" --label $(OCI).source=$(SOURCE) --tag $(IMAGE) .

image-test: $(DEV) $(OPS) ## build the image with podman and run it as the manifests do, under load, through a balancer
	@.venv-dev/bin/python -m pytest tests/deploy

k8s-check: $(DEV) $(OPS) ## render every overlay and component and check them against schemas and policies
	@.venv-dev/bin/python -m pytest tests/deploy/test_manifests.py

sbom: $(OPS) ## write build/sbom.cdx.json: what the image's Python packages are, with their hashes
	@mkdir -p build
	@.venv-ops/bin/cyclonedx-py requirements --output-reproducible --of JSON -o build/sbom.cdx.json requirements/serve.txt

vulnerabilities: $(OPS) ## look up the locked packages in the public list of known vulnerabilities (needs a network)
	@.venv-ops/bin/pip-audit --require-hashes --disable-pip -r requirements/serve.txt

clean: ## remove the environments and every cache
	@rm -rf .venv .venv-clients .venv-dev .venv-fuzz .venv-mlserver .venv-ops .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --clear: a package that left the lock leaves .venv too.
# --no-compile: only modules that are really imported get bytecode, which saves 30 MB of disk.
$(SERVE): requirements/serve.txt
	$(call install,.venv,--clear,--no-compile --require-hashes,what serving needs (about 200 MB))

$(DEV): requirements/dev.txt
	$(call install,.venv-dev,,,PyTorch and the developer tools (up to 6 GB; takes minutes))

# Their pins clash with ours (ml-dtypes, protobuf) and with each other (FastAPI), so they only ever talk to the service over HTTP.
.venv-clients/.installed: requirements/clients.txt
	$(call install,.venv-clients,--clear,,the clients of other servers (about 560 MB))

.venv-mlserver/.installed: requirements/clients-mlserver.txt
	$(call install,.venv-mlserver,--clear,,MLServer (about 425 MB))

# atheris is a compiled fuzzer that nothing else needs.
$(FUZZ): requirements/fuzz.txt
	$(call install,.venv-fuzz,--clear,,what serving needs and a fuzzer (about 230 MB))

$(OPS): requirements/operations.txt
	$(call install,.venv-ops,--clear,,what checks the container and the manifests (about 570 MB))

# $(call install,FOLDER,VENV OPTIONS,PIP OPTIONS,WHAT). The stamp is written last: an interrupted install starts over.
define install
@fail() { echo "$$*" >&2; exit 1; }; \
no_venv='$(PYTHON) cannot make a virtual environment: install python3-venv (Debian: apt install python3-venv).'; \
command -v $(PYTHON) >/dev/null || fail 'There is no $(PYTHON): install Python 3.11 or newer, or name one with PYTHON=...'; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	fail "Python 3.11 or newer is needed, and $(PYTHON) is $$($(PYTHON) --version 2>&1): name another with PYTHON=..."; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || fail "$$no_venv"; \
echo 'Making $(1) ...'; \
$(PYTHON) -m venv $(2) $(1) || fail "$$no_venv"; \
echo 'Installing $(4) into $(1) ...'; \
$(1)/bin/python -m pip install -qq --no-input $(3) -r $< || \
	fail 'pip could not install $<; its reason is above. Is there a network?'; \
touch $@
endef
