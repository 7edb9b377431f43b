#!/usr/bin/env bash
# Builds the three images from one compile.
#
# usage: images.sh load | push PREFIX DIGESTS
#
#   load   for this machine's engine, tagged verdict/<service>:dev; prints their sizes
#   push   to PREFIX-<service> (such as ghcr.io/acme/verdict) by digest alone, with SBOM and provenance, for this machine's
#          platform; writes one line `service digest` each into the file DIGESTS
#
# push needs BuildKit (docker buildx) with a builder of the driver docker-container, and a login at the registry. Layers of
# dependencies are kept at PREFIX-cache:<architecture>.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
readonly services=(model-registry predict rag)

command -v docker >/dev/null || { echo "error: docker is missing" >&2; exit 1; }

labels=(
  --build-arg "VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)"
  --build-arg "REVISION=$(git rev-parse HEAD)"
  --build-arg "CREATED=$(git log -1 --format=%cI)"
  --build-arg "SOURCE=${GITHUB_SERVER_URL:+$GITHUB_SERVER_URL/$GITHUB_REPOSITORY}"
)

load() {
  local service
  for service in "${services[@]}"; do
    DOCKER_BUILDKIT=1 docker build --target "$service" --tag "verdict/$service:dev" "${labels[@]}" .
  done
  docker images --format '{{.Repository}}:{{.Tag}}\t{{.Size}}' | grep '^verdict/'
}

push() {
  local prefix=$1 digests=$2 service metadata cache
  cache="$prefix-cache:$(uname -m)"
  metadata=$(mktemp)
  : >"$digests"
  for service in "${services[@]}"; do
    # The first one compiles; the others find its stages in the builder.
    docker buildx build --target "$service" "${labels[@]}" \
      --output "type=image,name=$prefix-$service,push-by-digest=true,name-canonical=true,push=true" \
      --sbom=true --provenance=mode=max \
      --cache-from "type=registry,ref=$cache" \
      --cache-to "type=registry,ref=$cache,mode=max,image-manifest=true,oci-mediatypes=true" \
      --metadata-file "$metadata" .
    python3 -c '
import json, re, sys
digest = json.load(open(sys.argv[1]))["containerimage.digest"]
assert re.fullmatch("sha256:[0-9a-f]{64}", digest), digest
print(sys.argv[2], digest)' "$metadata" "$service" >>"$digests"
  done
  rm -f "$metadata"
  cat "$digests"
}

case "${1:-} $#" in
  "load 1") load ;;
  "push 3") push "$2" "$3" ;;
  *)
    sed -n '4,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
