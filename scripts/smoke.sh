#!/usr/bin/env bash
# Calls deployed services through the API server, as an outsider would: health, reflection, and a read that needs what they
# stand on. Prints one line each; fails with the first that does not answer.
#
# usage: smoke.sh NAMESPACE [SERVICE...]       without services: all three
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
"$root/scripts/tools.sh" deploy
export PATH="${VERDICT_CACHE:-$HOME/.cache/verdict}/tools/bin:$PATH"
namespace=${1:?usage: smoke.sh NAMESPACE [SERVICE...]}
shift
[[ $# -gt 0 ]] || set -- model-registry predict rag

# Port, gRPC name, and a method without effect where there is one.
declare -A port=([model-registry]=50051 [predict]=50052 [rag]=50053)
declare -A name=(
  [model-registry]=verdict.registry.v1.ModelRegistryService
  [predict]=verdict.predict.v1.PredictService
  [rag]=verdict.rag.v1.RagService
)
declare -A read_only=([model-registry]=ListModels [predict]=ListServedModels [rag]="")

forwarding=
log=$(mktemp)
end() {
  [[ -z $forwarding ]] || kill "$forwarding" 2>/dev/null || true
  rm -f "$log"
}
trap end EXIT

# Prints the local port when it listens: kubectl chooses a free one.
forward() {
  local i
  kubectl --namespace "$namespace" port-forward "service/$1" ":${port[$1]}" >"$log" 2>&1 &
  forwarding=$!
  for ((i = 0; i < 150; i++)); do
    local_port=$(sed -n 's/^Forwarding from 127\.0\.0\.1:\([0-9]*\).*/\1/p' "$log" | head -1)
    [[ -z $local_port ]] || return 0
    kill -0 "$forwarding" 2>/dev/null || break
    sleep 0.2
  done
  echo "error: $1: cannot forward its port" >&2
  cat "$log" >&2
  return 1
}

for service in "$@"; do
  [[ -n ${port[$service]:-} ]] || { echo "error: unknown service $service" >&2; exit 2; }
  forward "$service"
  address=127.0.0.1:$local_port
  health=$(grpcurl -plaintext -max-time 10 -d "{\"service\": \"${name[$service]}\"}" "$address" grpc.health.v1.Health/Check)
  [[ $health == *'"SERVING"'* ]] || { echo "error: $service: health says $health" >&2; exit 1; }
  grpcurl -plaintext -max-time 10 "$address" list | grep -qx "${name[$service]}" ||
    { echo "error: $service: reflection does not list ${name[$service]}" >&2; exit 1; }
  if [[ -n ${read_only[$service]} ]]; then
    grpcurl -plaintext -max-time 10 -d '{}' "$address" "${name[$service]}/${read_only[$service]}" >/dev/null
  fi
  echo "smoke: $service answers"
  kill "$forwarding"
  wait "$forwarding" 2>/dev/null || true
  forwarding=
done
