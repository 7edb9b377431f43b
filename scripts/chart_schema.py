#!/usr/bin/env python3
"""Writes values.schema.json and README.md of every service's chart, or checks that they are fresh.

usage: chart_schema.py write|check

The schema is charts/verdict-common/values.common.schema.json, which all services share, and values.own.schema.json of
the chart. Every value of values.yaml must be declared in it, and every declared one must have a default.
"""

import json
import sys
from pathlib import Path

import yaml

CHARTS = Path(__file__).resolve().parent.parent / "charts"
SERVICES = ("model-registry", "predict", "rag")
NOT_IN_VALUES = {"verdict-common"}


def schema(service: str) -> dict:
    merged = json.loads((CHARTS / "verdict-common/values.common.schema.json").read_text())
    own = json.loads((CHARTS / service / "values.own.schema.json").read_text())
    merged["title"] = f"Values of the chart {service}"
    merged["properties"] |= own["properties"]
    return merged


def rows(properties: dict, values: dict, path: str = "") -> list[tuple[str, str, str]]:
    """Name, default and meaning of every value, a group's members after it; KeyError and ValueError where both differ."""
    if unknown := set(values) - set(properties):
        raise ValueError(f"`{path}{unknown.pop()}` is in values.yaml and not in the schema")
    listed = []
    for name, property in properties.items():
        if name in NOT_IN_VALUES:
            continue
        if name not in values:
            raise ValueError(f"`{path}{name}` is in the schema and not in values.yaml")
        meaning = property.get("description", "")
        if property.get("type") == "object" and "properties" in property:
            if meaning:
                listed.append((f"{path}{name}", "", meaning))
            listed += rows(property["properties"], values[name], f"{path}{name}.")
        else:
            listed.append((f"{path}{name}", f"`{json.dumps(values[name])}`", meaning))
    return listed


def readme(service: str, merged: dict) -> str:
    chart = yaml.safe_load((CHARTS / service / "Chart.yaml").read_text())
    values = yaml.safe_load((CHARTS / service / "values.yaml").read_text())
    lines = [
        f"# {service}",
        "",
        chart["description"] + ".",
        "",
        "```sh",
        f"helm upgrade --install {service} ./charts/{service} --namespace ml-services --set image.tag=…",
        "```",
        "",
        "How it fits with the other charts, Terraform and the workflows: [docs/deploy.md](../../docs/deploy.md).",
        "This page is written by `scripts/chart_schema.py`.",
        "",
        "| value | default | what |",
        "|---|---|---|",
    ]
    lines += [f"| `{name}` | {default} | {meaning} |" for name, default, meaning in rows(merged["properties"], values)]
    return "\n".join(lines) + "\n"


def main() -> int:
    if sys.argv[1:] not in (["write"], ["check"]):
        print(__doc__, file=sys.stderr)
        return 2
    stale = []
    for service in SERVICES:
        merged = schema(service)
        try:
            page = readme(service, merged)
        except ValueError as problem:
            print(f"error: charts/{service}: {problem}", file=sys.stderr)
            return 1
        for path, text in (
            (CHARTS / service / "values.schema.json", json.dumps(merged, indent=1) + "\n"),
            (CHARTS / service / "README.md", page),
        ):
            if sys.argv[1] == "write":
                path.write_text(text)
            elif not path.exists() or path.read_text() != text:
                stale.append(path)
    for path in stale:
        print(f"error: {path} is stale; run: scripts/chart_schema.py write", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
