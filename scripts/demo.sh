#!/usr/bin/env bash
# Builds the services and the demo, fetches the models, and plays the story.
#
# usage: demo.sh run|up|down [ARGUMENT OF verdict-demo...]
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
verb=${1:?usage: demo.sh run|up|down}
shift
bin="${CARGO_TARGET_DIR:-$root/target}/release"

if [[ $verb != down ]]; then
  "$root/scripts/models.py"
  echo "building the services (minutes the first time)"
  cargo build --release --quiet -p model-registry -p predict -p rag -p verdict-demo
elif [[ ! -x $bin/verdict-demo ]]; then
  echo "nothing to stop: the demo was never built" >&2
  exit 0
fi
exec "$bin/verdict-demo" "$verb" --bin-dir "$bin" "$@"
