#!/usr/bin/env bash
# Runs every test: starts the servers they talk to, stops them at the end, however it ends.
#
# usage: test.sh [ARGUMENT OF cargo nextest run...]     for example: test.sh -p model-registry
#
# Tests of a server that cannot be had here are reported as missing and left out; they are never green.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
"$root/scripts/tools.sh" test
"$root/scripts/models.py"
export PATH="${VERDICT_CACHE:-$HOME/.cache/verdict}/tools/bin:$PATH"

servers="$root/.verdict/test-servers-$$"
trap '"$root/scripts/servers.sh" stop "$servers"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
"$root/scripts/servers.sh" start "$servers"
# shellcheck source=/dev/null
source "$servers/env"

left_out=()
if [[ -z ${TEST_QDRANT_URL:-} ]]; then
  echo "missing: Qdrant server (TEST_QDRANT_URL); its tests (live_qdrant) are left out"
  left_out=(-E 'not test(/(^|::)live_qdrant::/)')
fi

# The clients that drive the registry, each with its packages: VERSION=DIRECTORY:DIRECTORY, separated by spaces.
client=$("$root/scripts/python_env.sh" mlflow-client)
TEST_MLFLOW_CLIENTS=
for version in 2.22 3.6 3.18; do
  TEST_MLFLOW_CLIENTS+=" $version=$("$root/scripts/python_env.sh" "mlflow-$version"):$client"
done
export TEST_MLFLOW_CLIENTS
# What the servers of the same versions need besides: they are what is imported from.
TEST_MLFLOW_SERVER=$("$root/scripts/python_env.sh" mlflow-server)
export TEST_MLFLOW_SERVER

# The client that drives predict through the Open Inference Protocol.
TEST_TRITONCLIENT=$("$root/scripts/python_env.sh" tritonclient)
export TEST_TRITONCLIENT

# What watches the services.
TEST_PROMETHEUS=$(command -v prometheus)
export TEST_PROMETHEUS

if [[ $# -eq 0 ]]; then
  cargo test --quiet --workspace --doc
  set -- --workspace
fi
cargo nextest run "${left_out[@]}" "$@"
