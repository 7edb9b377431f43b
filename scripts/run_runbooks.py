#!/usr/bin/env python3
"""Runs the commands of docs/runbooks/ on services that run: every block of `sh` but those that say that they can't be run here.

usage: run_runbooks.py       REGISTRY, REGISTRY_ADMIN, PREDICT, PREDICT_ADMIN, RAG, RAG_ADMIN: host:port of each

Prints each block that fails, with what it said, and fails when there is one. Needs grpcurl and curl.
"""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

RUNBOOKS = Path(__file__).resolve().parent.parent / "docs/runbooks"
_BLOCK = re.compile(r"^( *)```sh\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_ELSEWHERE = ("# Not run here", "# Run by")


def blocks(page: Path) -> list[str]:
    """Returns the commands of a page, block by block."""
    return [textwrap.dedent(block) for _, block in _BLOCK.findall(page.read_text(encoding="utf-8"))]


def is_local(block: str) -> bool:
    """Tells whether a block needs nothing but the three services."""
    return not block.startswith(_ELSEWHERE)


def main() -> int:
    done, failed = 0, 0
    for page in sorted(RUNBOOKS.glob("*.md")):
        for block in filter(is_local, blocks(page)):
            ran = subprocess.run(["bash", "-euo", "pipefail", "-c", block], capture_output=True, text=True, check=False, timeout=60)
            done += 1
            if ran.returncode:
                failed += 1
                print(f"{page.name}: exit code {ran.returncode}\n{block}{ran.stdout}{ran.stderr}", file=sys.stderr)
    print(f"{done} blocks of commands were run, {failed} failed")
    return 1 if failed or not done else 0


if __name__ == "__main__":
    sys.exit(main())
