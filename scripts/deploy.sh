#!/usr/bin/env bash
# Deploys images to one environment, in the order in which the services need each other, and calls each afterwards. What
# does not become ready, or does not answer, is taken back: all of it.
#
# usage: deploy.sh staging|production IMAGES [CHART_VALUES]
#
#   IMAGES        JSON file: {"model-registry": "ghcr.io/…@sha256:…", "predict": …, "rag": …}; by digest, never by tag
#   CHART_VALUES  JSON file: what `terraform output -json chart_values` printed for the environment
#
# Talks to the cluster that KUBECONFIG names. VERDICT_NAMESPACE: ml-services unless it says otherwise.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
"$root/scripts/tools.sh" deploy
export PATH="${VERDICT_CACHE:-$HOME/.cache/verdict}/tools/bin:$PATH"

[[ $# -ge 2 && $1 =~ ^(staging|production)$ ]] || { sed -n '5,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
environment=$1 images=$2 chart_values=${3:-}
namespace=${VERDICT_NAMESPACE:-ml-services}
readonly services=(model-registry predict rag)

# Repository and digest of a service, or the end: a tag may mean another image tomorrow.
image_of() {
  python3 -c '
import json, re, sys
image = json.load(open(sys.argv[1])).get(sys.argv[2], "")
match = re.fullmatch(r"([a-z0-9][a-z0-9./:_-]*)@(sha256:[0-9a-f]{64})", image)
if not match:
    sys.exit(f"error: {sys.argv[1]}: {sys.argv[2]} is {image!r}, not repository@sha256:…")
print(*match.groups())' "$images" "$1"
}

values_of() {
  python3 -c '
import json, sys
print(json.dumps(json.load(open(sys.argv[1]))[sys.argv[2]]))' "$chart_values" "$1"
}

revision_of() {
  helm history "$1" --namespace "$namespace" --max 1 --output json 2>/dev/null |
    python3 -c 'import json, sys; print(json.load(sys.stdin)[-1]["revision"])' 2>/dev/null || echo 0
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
declare -A before
upgraded=()

# Everything that was upgraded, the last one first, to the revision it had; what was not there before goes.
take_back() {
  local i service
  echo "deploy: taking back: ${upgraded[*]:-nothing}" >&2
  for ((i = ${#upgraded[@]} - 1; i >= 0; i--)); do
    service=${upgraded[i]}
    if [[ ${before[$service]} == 0 ]]; then
      helm uninstall "$service" --namespace "$namespace" --wait || true
    else
      helm rollback "$service" "${before[$service]}" --namespace "$namespace" --wait --timeout 20m || true
    fi
  done
  exit 1
}

# All is looked at before anything is changed.
for service in "${services[@]}"; do
  image_of "$service" >"$work/$service.image"
  if [[ -n $chart_values ]]; then values_of "$service" >"$work/$service.json"; fi
done

for service in "${services[@]}"; do
  read -r repository digest <"$work/$service.image"
  values=(--values "charts/$service/values-$environment.yaml")
  if [[ -n $chart_values ]]; then values+=(--values "$work/$service.json"); fi
  before[$service]=$(revision_of "$service")
  echo "deploy: $service $digest to $environment (was revision ${before[$service]})" >&2
  helm upgrade --install "$service" "charts/$service" --namespace "$namespace" "${values[@]}" \
    --set-string "image.repository=$repository" --set-string "image.digest=$digest" \
    --rollback-on-failure --timeout 20m --history-max 10 || take_back
  upgraded+=("$service")
  "$root/scripts/smoke.sh" "$namespace" "$service" || take_back
done
