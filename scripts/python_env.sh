#!/usr/bin/env bash
# Installs scripts/requirements/NAME.txt (every version pinned) once, and prints the directory to put on PYTHONPATH.
#
# usage: python_env.sh NAME
#
# A directory made by `pip install --target` serves where a virtual environment would not: Debian's Python comes without
# ensurepip and refuses a plain `pip install`. The directory's name carries the digest of the pins: a changed pin is a
# new directory.
set -euo pipefail

name=${1:?usage: python_env.sh NAME}
requirements="$(cd "$(dirname "$0")" && pwd)/requirements/$name.txt"
cache="${VERDICT_CACHE:-$HOME/.cache/verdict}/python"
[[ -f $requirements ]] || { echo "error: $requirements does not exist" >&2; exit 2; }

python3 -m pip --version >/dev/null 2>&1 || {
  echo "error: python3 has no pip; install it with: apt-get install -y python3-pip" >&2
  exit 1
}
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: Python 3.11 or newer is needed, python3 is $(python3 --version)" >&2
  exit 1
}
version=$(python3 -c 'import sys; print(f"{sys.version_info.major}.{sys.version_info.minor}")')
digest=$({ cat "$requirements"; echo "$version"; } | sha256sum | cut -c1-12)
target="$cache/$name-$digest"

if [[ ! -f $target/.complete ]]; then
  mkdir -p "$cache"
  exec 9>"$cache/.$name.lock"
  flock 9
  if [[ ! -f $target/.complete ]]; then
    echo "installing Python packages for $name" >&2
    partial=$(mktemp -d "$cache/.$name-XXXXXX")
    trap 'rm -rf "$partial"' EXIT
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps \
      --target "$partial" --requirement "$requirements" >&2
    touch "$partial/.complete"
    chmod 755 "$partial"
    rm -rf "$target"
    mv "$partial" "$target"
  fi
fi
echo "$target"
