#!/usr/bin/env python3
"""Checks that docs/dependencies.md and Cargo.toml name the same crates.

usage: check_dependencies.py
"""

import re
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> int:
    manifest = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())["workspace"]["dependencies"]
    used = {name for name, entry in manifest.items() if not (isinstance(entry, dict) and "path" in entry)}
    page = (REPOSITORY / "docs" / "dependencies.md").read_text()
    explained = set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE))
    for name in sorted(used - explained):
        print(f"error: {name} is in Cargo.toml but not explained in docs/dependencies.md", file=sys.stderr)
    for name in sorted(explained - used):
        print(f"error: {name} is explained in docs/dependencies.md but no longer in Cargo.toml", file=sys.stderr)
    return 1 if used != explained else 0


if __name__ == "__main__":
    sys.exit(main())
