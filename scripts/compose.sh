#!/usr/bin/env bash
# Runs docker-compose.yml, with secrets that are made here.
#
# usage: compose.sh secrets | up [observe] | down [ARGUMENT OF docker compose down...] | config
#
#   secrets  makes what is missing in .verdict/compose: passwords and keys at random, addresses that alert nobody
#   up       secrets, then builds and starts profile core (and observe), and waits until all are healthy; rag, which is healthy
#            when predict serves its models, is not waited for
#   down     stops both; `down --volumes` deletes what they kept
#   config   checks the file without a Docker engine
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
secrets="$root/.verdict/compose"
export PATH="${VERDICT_CACHE:-$HOME/.cache/verdict}/tools/bin:$PATH"

compose() {
  if docker compose version >/dev/null 2>&1; then docker compose "$@"; else docker-compose "$@"; fi
}

# Writes FILE from standard input unless it is there: a value once given to a server stays what it is. Secrets that
# containers read as files are readable by all on purpose, in a directory that is not: the users inside have other ids.
once() {
  if [[ -e $secrets/$1 ]]; then
    cat >/dev/null
  else
    (umask "$2" && cat >"$secrets/$1.new" && mv "$secrets/$1.new" "$secrets/$1")
  fi
}

random() {
  python3 -c 'import secrets; print(secrets.token_hex(24), end="")'
}

make_secrets() {
  local name
  mkdir -p "$secrets"
  chmod 700 "$secrets"
  for name in postgres-admin postgres-registry postgres-predict grafana-admin; do random | once "$name" 022; done
  if [[ ! -e $secrets/s3.json ]]; then
    local key
    key=$(random)
    printf 'AWS_ACCESS_KEY_ID=verdict\nAWS_SECRET_ACCESS_KEY=%s\n' "$key" | once s3.env 077
    printf '{"identities": [{"name": "verdict", "credentials": [{"accessKey": "verdict", "secretKey": "%s"}], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}\n' \
      "$key" | once s3.json 022
  fi
  {
    echo "DATABASE_URL=postgres://registry:$(cat "$secrets/postgres-registry")@postgres:5432/registry"
    cat "$secrets/s3.env"
    echo "MODEL_REGISTRY_WEBHOOK_KEY=$(python3 -c 'import base64, os; print(base64.b64encode(os.urandom(32)).decode())')"
  } | once model-registry.env 077
  echo "DATABASE_URL=postgres://predict:$(cat "$secrets/postgres-predict")@postgres:5432/predict" | once predict.env 077
  echo "QDRANT_API_KEY=$(random)" | once rag.env 077
  sed 's/^QDRANT_API_KEY=/QDRANT__SERVICE__API_KEY=/' "$secrets/rag.env" | once qdrant.env 077
  # Nothing listens there: replace both to be alerted.
  printf %s http://127.0.0.1:9/replace-me | once slack-webhook 022
  printf %s replace-me | once pagerduty-key 022
}

verb=${1:-}
[[ $# -eq 0 ]] || shift
case $verb in
  secrets) make_secrets ;;
  up)
    profiles=(--profile core)
    if [[ ${1:-} == observe ]]; then
      profiles+=(--profile observe)
      export OTEL_EXPORTER_OTLP_ENDPOINT=http://otel-collector:4317
    fi
    make_secrets
    compose "${profiles[@]}" up --build --detach
    # Those that end when their work is done are not waited for: they have ended.
    mapfile -t services < <(compose "${profiles[@]}" config --services | grep -vxE 'rag|model-registry-migrate|artifacts-bucket')
    compose "${profiles[@]}" up --detach --no-deps --no-recreate --wait "${services[@]}"
    ;;
  down) compose --profile core --profile observe down "$@" ;;
  config)
    make_secrets
    compose --profile core --profile observe config --quiet
    ;;
  *)
    sed -n '4,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
