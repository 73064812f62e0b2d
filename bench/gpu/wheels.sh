#!/usr/bin/env bash
# Collect into .whl/ what a GPU machine without a network usually lacks beside torch, lightning and typer, in the versions of
# requirements.lock: `bench/gpu/wheels.sh [PYTHON_VERSION]`, 3.12 by default. Copy the folder there and install from it:
#   python3 -m pip install -q --no-index --no-deps --upgrade --target .whl/site .whl/*.whl
set -euo pipefail
cd "$(dirname "$0")/../.."
version=${1:-3.12}
names="pydantic pydantic_core annotated-types typing-inspection ruamel.yaml lazy-loader transformers peft"
rm -rf .whl
mkdir .whl
for name in $names; do
  pin=$(grep -i -E "^${name//_/[-_]}==" requirements.lock)
  python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d .whl "$pin"
done
du -sh .whl
