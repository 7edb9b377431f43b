#!/usr/bin/env bash
# Measures the services beside their peers in one run and prints the ratios.
#
# usage: bench.sh [ARGUMENT OF verdict-bench...]
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
"$root/scripts/models.py"
"$root/scripts/python_env.sh" bench >/dev/null
echo "building the services and the bench (minutes the first time)"
cargo build --release --quiet -p model-registry -p predict -p rag -p verdict-bench
exec "${CARGO_TARGET_DIR:-$root/target}/release/verdict-bench" "$@"
