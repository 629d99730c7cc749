# make demo   the whole path: build, boot, attest, enrol, run a canister, reboot
# make test   the tests: unit, component, image build, the demo, the most telling cases of the boot matrix
# make test-boot     the whole boot matrix
# make bench-image   the figures of docs/benchmarks.md, section "Image"
# Each sets up what is missing first.

PYTHON ?= python3
NODEOS := .venv/bin/nodeos
PYTEST := .venv/bin/python -m pytest

.PHONY: setup demo test test-quick test-boot-core test-boot bench-image lint image lock clean

setup:
	@PYTHON=$(PYTHON) image/scripts/setup-host

demo: setup
	@$(NODEOS) demo run

# The quick part first: what it finds need not wait for an image.
test: test-quick test-boot-core

test-quick: setup
	@$(PYTEST) tests/unit tests/component

# Says at the end which cases it left to test-boot.
test-boot-core: setup
	@$(PYTEST) tests/image tests/vm -m "not matrix"

# With the table of all cases at the end.
test-boot: setup
	@$(PYTEST) tests/image tests/vm

# ONLY="--only sizes --only boot" measures some parts.
bench-image: setup
	@$(NODEOS) image bench $(ONLY)

lint: setup
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports

image: setup
	@$(NODEOS) image build

# Write the locks anew from pyproject.toml. Needs uv.
lock:
	uv pip compile --quiet --no-header --generate-hashes --no-emit-index-url --allow-unsafe --universal \
	    --python-version 3.11 image/locks/build.in -o image/locks/build.txt
	uv pip compile --quiet --no-header --generate-hashes --no-emit-index-url --universal \
	    --python-version 3.11 --extra host --extra dev pyproject.toml -o image/locks/host.txt
	uv pip compile --quiet --no-header --generate-hashes --no-emit-index-url \
	    --python-version 3.13 --python-platform x86_64-manylinux_2_28 pyproject.toml -o image/locks/node.txt

# Caches, images and the demo's machines. Keys go too: ask first.
clean:
	@test ! -d build/keys || { echo "build/keys holds keys: remove it by hand if they are not needed"; exit 1; }
	rm -rf build
