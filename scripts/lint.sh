#!/usr/bin/env bash
# Checks everything a machine can check without running the code. Stops at the first finding.
#
# usage: lint.sh
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
"$root/scripts/tools.sh" lint
export PATH="${VERDICT_CACHE:-$HOME/.cache/verdict}/tools/bin:$PATH"

step() {
  echo "lint: $*" >&2
  "$@"
}

# A page must not promise a table that nobody filled in.
no_placeholders() {
  ! grep --recursive --include='*.md' --line-number --extended-regexp '^[A-Z]+_TABLE$' README.md docs
}

step cargo fmt --all --check
step no_placeholders
step scripts/check_dependencies.py
step buf lint proto
step buf format proto --diff --exit-code
step shellcheck --external-sources scripts/*.sh .ci/run
step hadolint Dockerfile
step actionlint
step zizmor --offline --quiet .github/workflows
# The advisory database is a repository on GitHub; where it cannot be had, the other three checks still stand.
step cargo deny --locked --all-features check bans licenses sources
if [[ -n ${VERDICT_LINT_ADVISORIES:-} ]]; then
  step cargo deny --locked --all-features check advisories
else
  echo "lint: left out: cargo deny check advisories (VERDICT_LINT_ADVISORIES=1 fetches the database from GitHub)" >&2
fi
step cargo clippy --quiet --workspace --all-targets -- -D warnings
