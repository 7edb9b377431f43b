#!/usr/bin/env bash
# Checks what watches the services: alert rules and their tests, dashboards, Prometheus, Alertmanager, the collector, runbooks.
#
# usage: check_observe.sh [names]
#
#   names  checks nothing, prints every metric that a rule or dashboard names and the services are to export
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
"$root/scripts/tools.sh" observe
export PATH="${VERDICT_CACHE:-$HOME/.cache/verdict}/tools/bin:$PATH"
packages=$("$root/scripts/python_env.sh" observe)
PYTHONPATH="$packages" exec python3 "$root/scripts/check_observe.py" "$@"
