#!/usr/bin/env bash
# The wheel in an environment that has nothing but it and the runtime lock, far from this tree: its
# commands start, and the demo is told to its end. `make wheel-test` calls it.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
make wheel OUT="$scratch"
"${PYTHON:-python3}" -m venv "$scratch/venv"
pip=("$scratch/venv/bin/pip" --quiet --disable-pip-version-check)
"${pip[@]}" install --no-deps --require-hashes -r requirements.lock
"${pip[@]}" install --no-deps --no-index "$scratch"/xelink-*.whl
"${pip[@]}" check
cd "$scratch"
# What else it put at the top would be somebody's else: pip lets one package overwrite another.
installed=$(venv/bin/python -c 'import importlib.metadata as metadata
print(*sorted({file.parts[0] for file in metadata.files("xelink") if file.suffix == ".py"}))')
[ "$installed" = "device_plugin sidecar xelink" ] || {
  echo "wheel: it installs: $installed" >&2
  exit 1
}
for command in xelink-sidecar xelink-device-plugin; do
  "venv/bin/$command" -h >help
  grep -q -- "-print-config" help
  "venv/bin/$command" -version
done
venv/bin/xelink demo | tail -n 3
