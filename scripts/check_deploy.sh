#!/usr/bin/env bash
# Checks everything the system is deployed with: images, compose file, charts, workflows, Terraform, and the scripts
# between them. A tool that is missing fails the check; what needs a Docker engine (building the images) or root (running the
# pods) is reported where there is none.
#
# usage: check_deploy.sh
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
"$root/scripts/tools.sh" deploy
export PATH="${VERDICT_CACHE:-$HOME/.cache/verdict}/tools/bin:$PATH"
packages=$("$root/scripts/python_env.sh" deploy)
checkov_packages=$("$root/scripts/python_env.sh" checkov)
VERDICT_CRD_SCHEMAS=$("$root/scripts/tools.sh" schemas)
export VERDICT_CRD_SCHEMAS

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

step() {
  echo "check-deploy: $*" >&2
  "$@"
}

with_packages() {
  PYTHONPATH="$packages" "$@"
}

# One scan of all, offline, with what .checkov.yaml leaves out and why.
policy() {
  mkdir -p "$work/policy/.github"
  cp Dockerfile "$work/policy/"
  cp -r "$work/rendered" terraform "$work/policy/"
  cp -r .github/workflows "$work/policy/.github/"
  rm -rf "$work/policy/terraform/tests"
  PYTHONPATH="$checkov_packages" python3 -m checkov.main --config-file "$root/.checkov.yaml" --directory "$work/policy" \
    --framework dockerfile kubernetes github_actions terraform --output json --quiet --compact \
    >"$work/policy.json" 2>"$work/policy.log" || [[ -s $work/policy.json ]] || { cat "$work/policy.log" >&2; return 1; }
  python3 scripts/policy_report.py "$work/policy.json" dockerfile kubernetes github_actions terraform
}

# The compiler of the images is the one everything is tested with.
same_toolchain() {
  local channel
  channel=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
  if ! grep -q "^ARG RUST_IMAGE=docker.io/library/rust:$channel-bookworm@sha256:" Dockerfile ||
    ! grep -q "^ENV RUSTUP_TOOLCHAIN=$channel$" Dockerfile; then
    echo "error: Dockerfile: RUST_IMAGE and RUSTUP_TOOLCHAIN must be $channel, as in rust-toolchain.toml" >&2
    return 1
  fi
}

step hadolint Dockerfile
step same_toolchain
step scripts/compose.sh config
step with_packages scripts/chart_schema.py check
step actionlint
step zizmor --offline --quiet .github/workflows
step scripts/check_terraform.sh "$work/chart_values"
step with_packages scripts/check_charts.py "$work/rendered" staging="$work/chart_values/staging.json" production="$work/chart_values/production.json"
step scripts/check_costs.py
step scripts/check_observe.sh
step policy
# Binaries as `make test` builds them; alone, it takes minutes.
step cargo build --quiet --workspace --bins
step with_packages scripts/check_pods.py "${CARGO_TARGET_DIR:-$root/target}/debug"
if docker info >/dev/null 2>&1 && [[ -n ${VERDICT_BUILD_IMAGES:-} ]]; then
  step scripts/images.sh load
else
  echo "check-deploy: missing: a Docker engine, with VERDICT_BUILD_IMAGES=1; the images were not built" >&2
fi
