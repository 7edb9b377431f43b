#!/usr/bin/env python3
"""Says what a policy scan of checkov found, in its JSON form. A framework in which nothing was scanned has failed.

usage: policy_report.py REPORT.json FRAMEWORK...
"""

import json
import sys
from pathlib import Path


def report_of(framework: str, reports: list[dict]) -> bool:
    """Prints what was found; whether all is well."""
    reports = [report for report in reports if report.get("check_type") == framework]
    passed = sum(report["summary"]["passed"] for report in reports)
    failed = [finding for report in reports for finding in report["results"]["failed_checks"]]
    unread = [problem for report in reports for problem in report["results"].get("parsing_errors", [])]
    for problem in unread:
        print(f"error: {framework}: cannot read {problem}", file=sys.stderr)
    for finding in failed:
        place = f"{finding['file_path']}:{finding['file_line_range'][0]}"
        print(f"error: {finding['check_id']} {finding['check_name']}: {finding['resource']} ({place})", file=sys.stderr)
    if not passed:
        print(f"error: {framework}: nothing was scanned", file=sys.stderr)
    print(f"{framework}: {passed} checks passed, {len(failed)} failed", file=sys.stderr)
    return bool(passed) and not failed and not unread


def main() -> int:
    if len(sys.argv) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    reports = json.loads(Path(sys.argv[1]).read_text())
    reports = reports if isinstance(reports, list) else [reports]
    well = [report_of(framework, reports) for framework in sys.argv[2:]]
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main())
