#!/usr/bin/env python3
"""Checks what watches the services; prints every finding and fails when there is one.

Rules: promtool checks and tests them; each alert has severity, texts, a runbook that exists and a test in which it fires.
Metrics: each one named in a rule or on a dashboard is exported by the services' code, recorded by a rule, or listed in
charts/observe/metrics.yaml; each one exported is on a dashboard and on the page of operations.
Dashboards: their expressions parse, their variables and ids are sound, their panels don't overlap.
Prometheus, Alertmanager with the receivers of alertmanager-routes.tsv, the collector's pipelines, links between pages.

With the argument `names` it checks nothing and prints the metrics that are named and that the services export or rules record.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

import promql
import run_runbooks

ROOT = Path(__file__).resolve().parent.parent
CHARTS = ROOT / "charts"
OBSERVE = CHARTS / "observe"
RUNBOOKS = ROOT / "docs/runbooks"
OPERATIONS = ROOT / "docs/OPERATIONS.md"
SERVICES = {
    "model-registry": ["proto/verdict/registry"],
    "predict": ["proto/verdict/predict", "proto/inference"],
    "rag": ["proto/verdict/rag"],
}
SEVERITIES = {"critical", "warning", "none"}

findings: list[str] = []


def finding(where: Path | str, problem: str) -> None:
    where = where.relative_to(ROOT) if isinstance(where, Path) else where
    findings.append(f"{where}: {problem}")


def run(where: Path, *command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        finding(where, f"{command[0]} {command[1]} {command[2]}: {(done.stdout + done.stderr).strip()}")
    return done.stdout.strip()


def load(path: Path) -> dict:
    with path.open(encoding="utf-8") as file:
        return yaml.safe_load(file)


def exported() -> dict[str, str]:
    """Names of all metrics in the code, and whether each is a histogram, a counter or a gauge."""
    files = [*ROOT.glob("services/*/src/metrics.rs"), *ROOT.glob("crates/*/src/metrics.rs")]
    found = {}
    for path in files:
        text = path.read_text(encoding="utf-8")
        for constant, name in re.findall(r"const (\w+): &str = \"([a-z0-9_]+)\"", text):
            kind = re.search(rf"describe_(histogram|counter|gauge)!\(\s*{constant}\b", text)
            if kind is None:
                finding(path, f"{name} is not described")
            found[name] = kind.group(1) if kind else "gauge"
    return found


def series(metrics: dict[str, str]) -> set[str]:
    """What a scrape of these metrics yields."""
    names = set()
    for name, kind in metrics.items():
        names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return names


def rule_files() -> list[Path]:
    return [CHARTS / name / "rules" / f"{name}.yaml" for name in [*SERVICES, "observe"]]


def rules_of(path: Path) -> list[dict]:
    return [rule for group in load(path)["groups"] for rule in group["rules"]]


def check_rules(path: Path) -> None:
    run(path, "promtool", "check", "rules", str(path))
    tests = path.parent / "tests" / path.name
    run(tests, "promtool", "test", "rules", str(tests))
    fires = {
        case["alertname"]
        for test in load(tests)["tests"]
        for case in test.get("alert_rule_test", [])
        if case.get("exp_alerts")
    }
    for rule in rules_of(path):
        name = rule.get("alert")
        if name is None:
            continue
        if name not in fires:
            finding(tests, f"{name} fires in no test")
        if rule.get("labels", {}).get("severity") not in SEVERITIES:
            finding(path, f"{name} has no severity of {sorted(SEVERITIES)}")
        notes = rule.get("annotations", {})
        for note in ("summary", "description", "runbook_url"):
            if not notes.get(note):
                finding(path, f"{name} has no {note}")
        page = re.sub(r"(?<!^)([A-Z])", r"-\1", name).lower() + ".md"
        if not notes.get("runbook_url", "").endswith(f"/docs/runbooks/{page}"):
            finding(path, f"the runbook_url of {name} does not end with /docs/runbooks/{page}")
        elif not (RUNBOOKS / page).is_file():
            finding(path, f"{name} has no runbook: docs/runbooks/{page} is missing")


def check_common_groups() -> None:
    """What is said of every service is said alike, but for its name and the methods that last."""
    texts = {}
    for service in SERVICES:
        path = CHARTS / service / "rules" / f"{service}.yaml"
        groups = load(path)["groups"]
        wanted = [f"{service}-{part}" for part in ("calls", "objective", "process")]
        text = json.dumps([group for group in groups if group["name"] in wanted], indent=1, sort_keys=True)
        text = re.sub(r"method!~\\\"[^\"]*\\\"", "method!~STREAMS", text.replace(service, "SERVICE"))
        texts[path] = text
    (first, expected), *others = texts.items()
    for path, text in others:
        if text != expected:
            line = next((a for a, b in zip(text.splitlines(), expected.splitlines()) if a != b), "")
            finding(path, f"its groups for every service differ from those of {first.name}: {line.strip()}")


def check_streams() -> None:
    """A stream lasts as long as its caller wishes: none is in the rule about slow calls."""
    for service, folders in SERVICES.items():
        path = CHARTS / service / "rules" / f"{service}.yaml"
        slow = next(r for r in rules_of(path) if r.get("record", "").endswith("http_request_duration_seconds:p99_5m"))
        left_out = re.search(r"method!~\"([^\"]*)\"", slow["expr"]).group(1)
        for proto in (file for folder in folders for file in (ROOT / folder).rglob("*.proto")):
            text = re.sub(r"//.*", "", proto.read_text(encoding="utf-8"))
            for method, takes, gives in re.findall(r"rpc (\w+)\s*\(([^)]*)\)\s*returns\s*\(([^)]*)\)", text):
                streams = "stream " in takes or "stream " in gives
                if streams and not re.fullmatch(left_out, method):
                    finding(path, f"{method} of {proto.name} streams and counts among slow calls: add it to {left_out}")


def check_names(where: Path, what: str, expression: str, known: set[str], named: set[str]) -> None:
    try:
        names = promql.names(expression)
    except ValueError as error:
        finding(where, f"{what}: {error}")
        return
    named |= names
    for name in sorted(names - known):
        finding(where, f"{what} names {name}, which nothing exports or records")


def panels_of(dashboard: dict) -> list[dict]:
    panels = dashboard.get("panels", [])
    return panels + [inner for panel in panels for inner in panel.get("panels", [])]


def check_dashboard(path: Path, known: set[str], named: set[str], uids: set[str]) -> None:
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    if not dashboard.get("uid") or dashboard["uid"] in uids:
        finding(path, "needs a uid of its own")
    uids.add(dashboard.get("uid", ""))
    panels = panels_of(dashboard)
    ids = [panel.get("id") for panel in panels]
    if len(ids) != len(set(ids)):
        finding(path, "two panels have one id")
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    taken: dict[tuple[int, int], str] = {}
    expressions = [(f"annotation {note['name']}", note["expr"]) for note in dashboard["annotations"]["list"]]
    for panel in panels:
        title, place = panel["title"], panel["gridPos"]
        if place["x"] + place["w"] > 24:
            finding(path, f"`{title}` is wider than the page")
        for cell in ((x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])):
            if taken.setdefault(cell, title) != title:
                finding(path, f"`{title}` lies over `{taken[cell]}`")
                break
        if panel["type"] == "row":
            continue
        if not panel.get("targets"):
            finding(path, f"`{title}` shows nothing")
        expressions += [(f"panel `{title}`", target["expr"]) for target in panel.get("targets", [])]
    for what, used in ((what, re.findall(r"\$\{?(\w+)", expression)) for what, expression in expressions):
        for variable in used:
            if variable not in variables and not variable.startswith("__"):
                finding(path, f"{what} uses ${variable}, which is no variable")
    plain = [
        (what, re.sub(r"\$\w+|\$\{\w+\}", "x", re.sub(r"\$__(rate_interval|interval|range)\b", "5m", expression)))
        for what, expression in expressions
    ]
    rules = [{"record": f"panel:{number}", "expr": expression} for number, (_, expression) in enumerate(plain)]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)
        file.flush()
        run(path, "promtool", "check", "rules", file.name)
    for what, expression in plain:
        check_names(path, what, expression, known, named)


def check_metrics() -> None:
    metrics = exported()
    lists = load(OBSERVE / "metrics.yaml")
    awaited, others = set(lists["awaited"]), set(lists["others"])
    for name in sorted(awaited & set(metrics)):
        finding(OBSERVE / "metrics.yaml", f"{name} is exported now: it is not awaited any more")
    for name in sorted(others & set(metrics)):
        finding(OBSERVE / "metrics.yaml", f"{name} is exported by a service, not by others")
    recorded = {rule["record"] for path in rule_files() for rule in rules_of(path) if "record" in rule}
    known = series(metrics) | recorded | awaited | others
    by_rules: set[str] = set()
    for path in rule_files():
        for rule in rules_of(path):
            check_names(path, rule.get("alert") or rule["record"], rule["expr"], known, by_rules)
    on_dashboards: set[str] = set()
    uids: set[str] = set()
    for path in sorted(CHARTS.glob("*/dashboards/*.json")):
        check_dashboard(path, known, on_dashboards, uids)
    for name in sorted((awaited | others) - by_rules - on_dashboards):
        finding(OBSERVE / "metrics.yaml", f"{name} is named nowhere")
    for name, kind in sorted(metrics.items()):
        if not series({name: kind}) & on_dashboards:
            finding("charts/*/dashboards", f"{name} is exported and shown on no dashboard")
        if f"`{name}`" not in OPERATIONS.read_text(encoding="utf-8"):
            finding(OPERATIONS, f"does not say what {name} is")


def check_prometheus() -> None:
    path = OBSERVE / "prometheus.yml"
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder)
        (staged / "rules").mkdir()
        (staged / path.name).write_bytes(path.read_bytes())
        for rules in rule_files():
            (staged / "rules" / rules.name).write_bytes(rules.read_bytes())
        told = run(path, "promtool", "check", "config", str(staged / path.name))
    if f"{len(rule_files())} rule files found" not in told:
        finding(path, f"does not read all rules: {told}")
    jobs = {job["job_name"] for job in load(path)["scrape_configs"]}
    for service in SERVICES.keys() - jobs:
        finding(path, f"does not scrape {service}")


def check_monitors() -> None:
    """The rules select by the chart's name as job, and by the label `service` of the metrics themselves."""
    for path in CHARTS.glob("*/templates/*"):
        text = path.read_text(encoding="utf-8")
        if "kind: ServiceMonitor" not in text:
            continue
        for line in ("honorLabels: true", "jobLabel: app.kubernetes.io/name"):
            if line not in text:
                finding(path, f"a ServiceMonitor without `{line}`: the rules would find nothing")


def check_alertmanager() -> None:
    path, routes = OBSERVE / "alertmanager.yml", OBSERVE / "alertmanager-routes.tsv"
    run(path, "amtool", "check-config", str(path))
    for line in routes.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or not line:
            continue
        receivers, labels = line.split("\t")
        reached = run(path, "amtool", "config", "routes", "test", f"--config.file={path}", *labels.split())
        if reached != receivers:
            finding(path, f"an alert with {labels} reaches {reached}, not {receivers}")
    secrets = {"slack_api_url", "api_url", "routing_key", "service_key", "password", "auth_password"}

    def keys(value: object) -> set[str]:
        if isinstance(value, dict):
            return set(value) | {key for inner in value.values() for key in keys(inner)}
        return {key for inner in value for key in keys(inner)} if isinstance(value, list) else set()

    for key in sorted(keys(load(path)) & secrets):
        finding(path, f"{key} is a secret: name a file, {key}_file")


def check_collector() -> None:
    path = OBSERVE / "otel-collector.yaml"
    config = load(path)
    pipelines = config["service"]["pipelines"]
    used = {"extensions": set(config["service"].get("extensions", []))}
    for kind in ("receivers", "processors", "exporters"):
        used[kind] = {name for pipeline in pipelines.values() for name in pipeline.get(kind, [])}
    for kind, names in used.items():
        defined = set(config.get(kind) or {})
        for name in sorted(names ^ defined):
            finding(path, f"{name} of {kind} is {'used and not defined' if name in names else 'defined and not used'}")
    for pipeline, parts in pipelines.items():
        if parts["processors"][0] != "memory_limiter" or parts["processors"][-1] != "batch":
            finding(path, f"{pipeline} must begin with memory_limiter and end with batch")


def check_grafana() -> None:
    folder = OBSERVE / "grafana/provisioning"
    sources = load(folder / "datasources/verdict.yaml")["datasources"]
    uids = {source["uid"] for source in sources}
    for source in sources:
        for link in source.get("jsonData", {}).get("exemplarTraceIdDestinations", []):
            if link["datasourceUid"] not in uids:
                finding(folder / "datasources/verdict.yaml", f"{link['datasourceUid']} is no data source")
    load(folder / "dashboards/verdict.yaml")


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_pages() -> None:
    pages = sorted(RUNBOOKS.glob("*.md"))
    index = RUNBOOKS / "README.md"
    for page in [OPERATIONS, *pages]:
        for block in run_runbooks.blocks(page):
            parsed = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
            if parsed.returncode:
                finding(page, f"has commands that are no shell: {parsed.stderr.strip()}")
            if run_runbooks.is_local(block) and re.search(r"^\s*(kubectl|helm|aws|terraform)\b", block, re.MULTILINE):
                finding(page, "has commands that need a cluster or AWS and don't say so")
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            linked = (page.parent / file).resolve() if file else page
            if not linked.exists():
                finding(page, f"links to {target}, which is not there")
            elif anchor and anchor not in anchors(linked):
                finding(page, f"links to {target}, and there is no such heading")
    listed = index.read_text(encoding="utf-8")
    for page in pages:
        if page != index and f"({page.name})" not in listed:
            finding(index, f"does not list {page.name}")


def print_names() -> int:
    """Prints what a scrape of the services must bring, and the rules record, for everything that is named."""
    lists = load(OBSERVE / "metrics.yaml")
    expressions = [rule["expr"] for service in SERVICES for rule in rules_of(CHARTS / service / "rules" / f"{service}.yaml")]
    for path in CHARTS.glob("*/dashboards/*.json"):
        for panel in panels_of(json.loads(path.read_text(encoding="utf-8"))):
            expressions += [target["expr"] for target in panel.get("targets", [])]
    named = set().union(*map(promql.names, expressions)) - lists["awaited"].keys() - lists["others"].keys()
    print(*sorted(named), sep="\n")
    return 0


def main() -> int:
    if sys.argv[1:] == ["names"]:
        return print_names()
    for path in rule_files():
        check_rules(path)
    check_common_groups()
    check_streams()
    check_metrics()
    check_prometheus()
    check_monitors()
    check_alertmanager()
    check_collector()
    check_grafana()
    check_pages()
    for problem in findings:
        print(f"error: {problem}", file=sys.stderr)
    if not findings:
        alerts = sum("alert" in rule for path in rule_files() for rule in rules_of(path))
        print(f"{alerts} alerts, {len(list(CHARTS.glob('*/dashboards/*.json')))} dashboards, "
              f"{len(list(RUNBOOKS.glob('*.md'))) - 1} runbooks: all sound")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
