# Every target builds what it needs: a machine with Python 3.11 or later and make is enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What runs, and with what builds and tests.
RUNTIME := $(VENV)/.runtime
READY := $(VENV)/.ready
# A Python that you name is the one that is used: an environment of another is built anew.
ifneq ($(origin PYTHON),file)
ANEW := --anew
ifneq ($(if $(wildcard $(BIN)/python),$(shell $(BIN)/python --version 2>&1)),$(shell { $(PYTHON) --version; } 2>&1))
.PHONY: $(RUNTIME)
endif
endif

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# The first that is there, or the one that you name. IMAGE_FLAGS go to its build: --secret, --platform, ...
CONTAINER_TOOL ?= $(firstword $(foreach tool,podman buildah docker,$(shell command -v $(tool))))
IMAGE ?= xelink:$(VERSION)
# The commit's time, so that equal sources give equal layers.
image sbom: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || date +%s)

.PHONY: help demo test coverage check fmt generate lock bench wheel image image-test sbom deployment-tools clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

$(RUNTIME): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	@$(PYTHON) tools/environment.py $(VENV) requirements.lock $(ANEW)
	@touch $@

$(READY): $(RUNTIME) requirements-dev.lock pyproject.toml
	@$(PYTHON) tools/environment.py $(VENV) requirements-dev.lock --editable $(ANEW)
	@touch $@

demo: $(RUNTIME) ## the daemons against simulators on this machine: no GPU, no cluster, under a minute
	@$(BIN)/python -m xelink demo

test: $(READY) ## every test, or some of them: ARGS="tests/topology -k links"
	$(BIN)/pytest -n auto --dist worksteal $(ARGS)

coverage: $(READY) ## every test, with what of the code it runs, which takes twice as long
	$(BIN)/pytest -n auto --dist worksteal --cov --cov-report=term

.PHONY: e2e
e2e: $(READY) ## the real kubelet, API server and NFD, on this machine; as root, see docs/e2e.md
	@tools/e2e-run.sh $(ARGS)

check: $(READY) ## format, lint, types, import contracts, generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/generate.py --check

.PHONY: generated
generated: $(READY) ## the generated files are current, whatever Python asks
	$(BIN)/python tools/generate.py --check

fmt: $(READY) ## format, and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

generate: $(READY) ## rewrite the generated files
	$(BIN)/python tools/generate.py

lock: $(READY) ## pin the newest allowed dependencies, with hashes and without an index host
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock
	echo hatchling | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url -c requirements-dev.lock - -o requirements-build.lock

bench: $(READY) ## measure, as ratios from one run
	@for bench in bench/*.py; do $(BIN)/python $$bench || exit 1; done

deployment-tools: ## what the deployment tests need beside Python, in .cache/tools
	@tools/deployment-tools.sh

.PHONY: soak
MINUTES ?= 5
SEED ?= 1
soak: $(READY) ## both daemons under every fault at random: MINUTES=5 SEED=1, as root for all of them
	@$(BIN)/python tools/soak.py --minutes $(MINUTES) --seed $(SEED)

.PHONY: simulate
simulate: $(READY) ## the policies over a thousand random scenarios
	@$(BIN)/xelink simulate --random 1 --runs 1000 $(ARGS)

wheel: $(READY) ## the installable wheel, in dist/
	$(BIN)/python -m build --wheel --no-isolation --outdir $(or $(OUT),dist)

.PHONY: wheel-test
wheel-test: $(READY) ## the wheel installs into an empty environment, and its commands start
	@PYTHON=$(PYTHON) tools/wheel-test.sh

image: ## the container image, by podman, buildah or docker
	@test -n "$(CONTAINER_TOOL)" || { echo "make image needs podman, buildah or docker; on Debian: apt-get install buildah" >&2; exit 1; }
	$(CONTAINER_TOOL) build --file Containerfile --tag $(IMAGE) $(if $(BASE),--build-arg BASE=$(BASE)) \
	  --build-arg SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) --build-arg VERSION=$(VERSION) \
	  --build-arg REVISION=$(shell git rev-parse HEAD 2>/dev/null) --build-arg CREATED=$(shell date -u -d @$(SOURCE_DATE_EPOCH) +%FT%TZ) \
	  $(if $(filter docker,$(notdir $(CONTAINER_TOOL))),,--timestamp $(SOURCE_DATE_EPOCH)) $(IMAGE_FLAGS) .

image-test: $(READY) ## build the image and run it, here, as root: needs debootstrap, buildah, podman, runc
	@$(BIN)/python tools/image_test.py $(ARGS)

sbom: $(READY) ## what xelink and its locked dependencies are: CycloneDX, in dist/
	@$(BIN)/python -m venv --clear --without-pip build/sbom
	@$(BIN)/python -m pip --python build/sbom/bin/python install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip --python build/sbom/bin/python check
	@mkdir -p dist
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file dist/xelink-$(VERSION).cdx.json build/sbom/bin/python

clean: ## everything that was built
	rm -rf $(VENV) .venv .venv-* dist build .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find bench device_plugin sidecar tests tools xelink -name __pycache__ -prune -exec rm -rf {} +
