#!/usr/bin/env bash
# Measures the services beside their peers in one run and prints the ratios.
#
# usage: bench.sh [all | models | quality | registry] [OPTION OF verdict-bench...]
#
# BENCH_SCIFACT names a folder with SciFact in BEIR's layout; without it the rows on its texts and `quality` are left out.
#
# The registry's part starts PostgreSQL, durable as by default, and stops it at the end; the server that TEST_POSTGRES_URL
# names is used instead where it is set.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
part=${1:-all}
packages=(-p verdict-bench)
if [[ $part != registry ]]; then
  "$root/scripts/models.py"
  "$root/scripts/python_env.sh" bench >/dev/null
  packages+=(-p predict -p rag)
fi
if [[ $part == all || $part == registry ]]; then
  BENCH_MLFLOW_PACKAGES=
  for name in mlflow-3.18 mlflow-client mlflow-server mlflow-postgres; do
    BENCH_MLFLOW_PACKAGES+="$("$root/scripts/python_env.sh" "$name"):"
  done
  export BENCH_MLFLOW_PACKAGES
fi
echo "building the services and the bench (minutes the first time)"
cargo build --release --quiet -p model-registry "${packages[@]}"

if [[ $part == all || $part == registry ]]; then
  servers="$root/.verdict/bench-servers-$$"
  trap '"$root/scripts/servers.sh" stop "$servers"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  "$root/scripts/servers.sh" start-durable "$servers"
  # shellcheck source=/dev/null
  source "$servers/env"
fi
"${CARGO_TARGET_DIR:-$root/target}/release/verdict-bench" "$@"
