#!/usr/bin/env python3
"""Checks that the cost tables of docs/deploy.md add up, line by line and in all.

usage: check_costs.py

A line is | what | number × | price | of unit | a month |; the last line of a table is its sum.
"""

import re
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "deploy.md"
LINE = re.compile(r"^\| (?P<what>[^|]+) \| (?P<count>[\d,.]+) (?P<unit>[^|]+) \| (?P<price>[\d.]+) \| (?P<month>[\d,.]+) \|$")
TOTAL = re.compile(r"^\| \*\*(?P<name>[^*|]+)\*\* \| \| \| \*\*(?P<month>[\d,]+)\*\* \|$")


def number(text: str) -> float:
    return float(text.replace(",", ""))


def main() -> int:
    problems, tables, total = [], 0, 0.0
    for line in PAGE.read_text().splitlines():
        if match := LINE.match(line):
            month = number(match["count"]) * number(match["price"])
            if abs(month - number(match["month"])) > 0.5:
                problems.append(f"{match['what']}: {month:.2f}, not {match['month']}")
            total += number(match["month"])
        elif match := TOTAL.match(line):
            tables += 1
            if abs(total - number(match["month"])) > 0.5:
                problems.append(f"{match['name']}: the lines add up to {total:.2f}, not {match['month']}")
            total = 0.0
    if tables != 2:
        problems.append(f"{tables} tables with a sum, not 2")
    for problem in problems:
        print(f"error: {PAGE.name}: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
