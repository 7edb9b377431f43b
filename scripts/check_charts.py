#!/usr/bin/env python3
"""Renders every chart as it is installed, and checks what comes out.

usage: check_charts.py RENDERED CHART_VALUES...

Writes the manifests into the directory RENDERED. CHART_VALUES are `environment=FILE`: what `terraform output -json
chart_values` prints for an environment. PATH must hold helm and helm3, which must render the same. The directory
VERDICT_CRD_SCHEMAS holds the npm packages of crd_schemas.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parent.parent
CHARTS = ROOT / "charts"
SERVICES = ("model-registry", "predict", "rag")
ALL = ("foundation", *SERVICES)
NAMESPACE = "ml-services"
# The oldest that Chart.yaml allows, and the newest that has schemas.
KUBERNETES = ("1.30", "1.37")
DIGEST = "sha256:" + "5" * 64
CUSTOM = ("external-secrets.io", "monitoring.coreos.com")
# Environment variables that no service declares: read by its libraries, or here for others to refer to.
OF_LIBRARIES = {"AWS_REGION", "OTEL_RESOURCE_ATTRIBUTES", "POD_NAME"}

# Secrets that charts/foundation makes.
SHARED = {"ghcr-secret", "kafka-credentials"}

# What must be refused, and a word of the message that says why.
REFUSED = [
    ("predict", ["--set", "replica=3"], "replica"),
    ("predict", ["--set", "replicas=-1"], "replicas"),
    ("predict", ["--set-string", "replicas=2"], "replicas"),
    ("predict", ["--set", "image.digest=latest"], "digest"),
    ("predict", ["--set", "models={embedder}"], "models"),
    ("predict", ["--set", "batch.delay=5"], "delay"),
    ("predict", ["--set", "batch.queueSize=10"], "queueSize"),
    ("predict", ["--set", "settings.lower=1"], "lower"),
    ("predict", ["--set", "drain.delaySeconds=0"], "delaySeconds"),
    ("predict", ["--set", "networkPolicy.callers[0].name=all"], "callers"),
    ("predict", ["--set", "persistence.enabled=false"], "database.secret.name"),
    ("predict", ["--set", "autoscaling.enabled=true"], "autoscaling.enabled and persistence.enabled exclude"),
    ("predict", ["--set", "replicas=2"], "persistence.enabled allows replicas: 1"),
    ("model-registry", ["--set", "artifacts.store=gs://models"], "store"),
    ("model-registry", ["--set", "persistence.enabled=false,database.secret.name=x"], "artifacts.store"),
    ("model-registry", ["--set", "database.connections=1"], "connections"),
    ("rag", ["--set", "qdrant.url=qdrant:6334"], "url"),
    ("rag", ["--set", "persistence.enabled=false"], "qdrant.url"),
    ("rag", ["--set", "telemetry.otlpEndpoint=collector"], "otlpEndpoint"),
    ("foundation", ["--set", "denyByDefault=yes please"], "denyByDefault"),
]


class Finding(Exception):
    """Something that must hold of a chart does not."""


def run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise Finding(f"{' '.join(command)}\n{result.stdout}{result.stderr}".strip())
    return result.stdout


def template(chart: str, *arguments: str, helm: str = "helm", version: str = KUBERNETES[-1]) -> str:
    path = str(CHARTS / chart) if "/" not in chart else chart
    name = Path(path).name
    return run(helm, "template", name, path, "--namespace", NAMESPACE, "--kube-version", version, *arguments)


def documents(text: str) -> list[dict]:
    return [document for document in yaml.safe_load_all(text) if document]


def sorted_(manifests: list[dict]) -> list[dict]:
    return sorted(manifests, key=lambda manifest: (manifest["kind"], manifest["metadata"]["name"]))


def known_settings(service: str) -> set[str]:
    """The environment variables that the service's own arguments and those of the shared crates read."""
    sources = [*(ROOT / "services" / service / "src").rglob("*.rs"), *(ROOT / "crates").glob("*/src/**/*.rs")]
    return {name for source in sources for name in re.findall(r'\benv = "([A-Z][A-Z0-9_]*)"', source.read_text())}


def health_services(service: str) -> set[str]:
    """The full gRPC names that the contracts define for a package of this name."""
    package = {"model-registry": "registry"}.get(service, service)
    names = set()
    for proto in (ROOT / "proto").rglob("*.proto"):
        text = proto.read_text()
        match = re.search(r"^package (\S+);", text, re.MULTILINE)
        if match and match[1] == f"verdict.{package}.v1":
            names |= {f"{match[1]}.{name}" for name in re.findall(r"^service (\w+)", text, re.MULTILINE)}
    return names


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Finding(what)


def one(manifests: list[dict], kind: str) -> dict:
    found = [manifest for manifest in manifests if manifest["kind"] == kind]
    require(len(found) == 1, f"{len(found)} objects of kind {kind}, not one")
    return found[0]


def check_schemas(manifests: list[dict]) -> None:
    custom = []
    for manifest in manifests:
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        require(bool(manifest["metadata"].get("namespace")), f"{name} has no namespace")
        if manifest["apiVersion"].split("/")[0] in CUSTOM:
            custom.append(manifest)
            continue
        for version in KUBERNETES:
            try:
                kubernetes_validate.validate(manifest, version, strict=True)
            except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
                raise Finding(f"{name}, Kubernetes {version}: {error}") from error
    result = subprocess.run(
        ["node", str(ROOT / "scripts/crd_schemas/validate.mjs")],
        cwd=os.environ["VERDICT_CRD_SCHEMAS"],
        input=json.dumps(custom),
        capture_output=True,
        text=True,
        check=False,
    )
    require(result.returncode == 0, f"{result.stdout}{result.stderr}".strip())


def check_pod(service: str, manifests: list[dict]) -> None:
    """What is fixed in every service's pod, and that its parts fit each other."""
    deployment = one(manifests, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    containers = pod["containers"]
    require(pod["automountServiceAccountToken"] is False, "a token of the API server is mounted")
    volumes = {volume["name"] for volume in pod["volumes"]}
    known = known_settings(service) | OF_LIBRARIES
    for container in [*containers, *pod.get("initContainers", [])]:
        name, security = container["name"], container["securityContext"]
        require(security["readOnlyRootFilesystem"] and security["runAsNonRoot"], f"{name} may write its root, or be root")
        require(security["capabilities"] == {"drop": ["ALL"]}, f"{name} keeps capabilities")
        require(not security["allowPrivilegeEscalation"], f"{name} may gain privileges")
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        require(mounted <= volumes, f"{name} mounts {mounted - volumes}, which are no volumes")
        names = [variable["name"] for variable in container["env"]]
        require(len(names) == len(set(names)), f"{name} sets a variable twice")
        unknown = set(names) - known
        require(not unknown, f"{name} sets {sorted(unknown)}, which the service does not read")
        require(container["image"].endswith("@" + DIGEST), f"{name} does not run the image it was told")
    main = containers[0]
    env = {variable["name"]: variable.get("value") for variable in main["env"]}
    ports = {port["name"]: port["containerPort"] for port in main["ports"]}
    prefix = service.replace("-", "_").upper()
    require(env[f"{prefix}_LISTEN"] == f"0.0.0.0:{ports['grpc']}", "the port grpc is not where it listens")
    require(env[f"{prefix}_ADMIN_LISTEN"] == f"0.0.0.0:{ports['admin']}", "the port admin is not where it listens")
    for probe in ("startupProbe", "readinessProbe"):
        asked = main[probe]["grpc"]
        require(asked["port"] == ports["grpc"], f"{probe} asks another port")
        require(asked["service"] in health_services(service), f"{probe} asks for {asked['service']}, no contract has it")
    require(main["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "admin"}, "liveness asks for more than the process")
    delay = main["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = int(env["SERVER_DRAIN_GRACE"].removesuffix("s"))
    require(pod["terminationGracePeriodSeconds"] == delay + grace + 10, "the pod is killed before it has drained")

    selector = deployment["spec"]["selector"]["matchLabels"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for chosen in (selector, one(manifests, "Service")["spec"]["selector"],
                   one(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
                   one(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]):
        require(chosen.items() <= labels.items(), f"{chosen} chooses other pods")
    for port in one(manifests, "Service")["spec"]["ports"]:
        require(ports[port["targetPort"]] == port["port"], f"the Service's port {port['name']} is none of the pod's")
    require(one(manifests, "ServiceAccount")["metadata"]["name"] == pod["serviceAccountName"], "another service account")

    scalers = [manifest for manifest in manifests if manifest["kind"] == "HorizontalPodAutoscaler"]
    require(bool(scalers) != ("replicas" in deployment["spec"]), "replicas are said by both or by neither")
    claims = {m["metadata"]["name"] for m in manifests if m["kind"] == "PersistentVolumeClaim"}
    for volume in pod["volumes"]:
        if claim := volume.get("persistentVolumeClaim"):
            require(claim["claimName"] in claims, f"the claim {claim['claimName']} is not there")
            require(deployment["spec"]["strategy"]["type"] == "Recreate", "two pods would share one disk")
    made = {m["spec"]["target"]["name"]: m["spec"]["target"]["template"]["data"] for m in manifests if m["kind"] == "ExternalSecret"}
    for variable in main["env"]:
        source = variable.get("valueFrom", {}).get("secretKeyRef")
        if source and made and source["name"] not in SHARED:
            require(source["key"] in made.get(source["name"], {}), f"{variable['name']}: no ExternalSecret makes it")


def check_monitoring(service: str, manifests: list[dict]) -> None:
    """In staging and production: the rules and dashboards of the chart arrive unchanged, and the monitor finds the Service."""
    monitor = one(manifests, "ServiceMonitor")
    labels = one(manifests, "Service")["metadata"]["labels"]
    require(monitor["spec"]["selector"]["matchLabels"].items() <= labels.items(), "the ServiceMonitor finds no Service")
    require(labels[monitor["spec"]["jobLabel"]] == service, "metrics would carry another job than the rules ask for")
    rules = yaml.safe_load((CHARTS / service / "rules" / f"{service}.yaml").read_text())
    require(one(manifests, "PrometheusRule")["spec"] == rules, "the PrometheusRule is not the file of rules")
    maps = [m for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["labels"].get("grafana_dashboard")]
    dashboards = {path.name: path.read_text() for path in (CHARTS / service / "dashboards").glob("*.json")}
    require(len(maps) == 1 and {n: t.strip() for n, t in maps[0]["data"].items()} == {n: t.strip() for n, t in dashboards.items()},
            "the dashboards are not those of the chart")


def check_rendered(rendered: Path, chart_values: dict[str, dict]) -> int:
    count = 0
    for chart in ALL:
        for environment in ("default", "staging", "production"):
            arguments = [] if chart == "foundation" else ["--set", f"image.digest={DIGEST}"]
            if environment != "default":
                overlay = CHARTS / chart / f"values-{environment}.yaml"
                if overlay.exists():
                    arguments += ["--values", str(overlay)]
                with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
                    json.dump(chart_values[environment][chart], file)
                arguments += ["--values", file.name]
            try:
                run("helm", "lint", "--strict", "--quiet", str(CHARTS / chart), "--namespace", NAMESPACE,
                    "--kube-version", KUBERNETES[-1], *arguments)
                text = template(chart, *arguments)
                manifests = documents(text)
                others = [template(chart, *arguments, version=version) for version in KUBERNETES[:-1]]
                for other in (template(chart, *arguments, helm="helm3"), *others):
                    require(sorted_(documents(other)) == sorted_(manifests), "helm 3, or an older Kubernetes, gets other objects")
                check_schemas(manifests)
                if chart in SERVICES:
                    check_pod(chart, manifests)
                    if environment != "default":
                        check_monitoring(chart, manifests)
            except Finding as finding:
                raise Finding(f"{chart}, {environment}: {finding}") from finding
            (rendered / f"{chart}-{environment}.yaml").write_text(text)
            count += len(manifests)
    return count


def check_refusals() -> None:
    for chart, arguments, word in REFUSED:
        try:
            template(chart, *arguments)
        except Finding as finding:
            require(word in str(finding).split("\n", 1)[1], f"{chart} {arguments}: refused without a word of {word}: {finding}")
        else:
            raise Finding(f"{chart} {arguments}: accepted")


def check_as_dependencies() -> None:
    """A chart over all three, with a global value, renders those that are enabled, under names of its release."""
    with tempfile.TemporaryDirectory() as directory:
        umbrella = Path(directory) / "umbrella"
        (umbrella / "charts").mkdir(parents=True)
        for service in SERVICES:
            (umbrella / "charts" / service).symlink_to(CHARTS / service)
        chart = {
            "apiVersion": "v2", "name": "umbrella", "version": "0.1.0",
            "dependencies": [{"name": s, "version": "0.1.0", "condition": f"{s}.enabled"} for s in SERVICES],
        }
        (umbrella / "Chart.yaml").write_text(yaml.safe_dump(chart))
        (umbrella / "values.yaml").write_text(yaml.safe_dump({"global": {"team": "x"}, "rag": {"enabled": False}}))
        manifests = documents(template(str(umbrella)))
        names = {manifest["metadata"]["name"] for manifest in manifests}
        require(names == {"umbrella-model-registry", "umbrella-predict"}, f"as dependencies they render {sorted(names)}")


def check_notes() -> None:
    for chart in ALL:
        notes = run("helm", "install", chart, str(CHARTS / chart), "--dry-run=client", "--namespace", NAMESPACE)
        require("NOTES:" in notes and "kubectl" in notes.split("NOTES:")[1] or chart == "foundation", f"{chart}: no notes")


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    chart_values = {}
    for argument in sys.argv[2:]:
        environment, _, path = argument.partition("=")
        chart_values[environment] = json.loads(Path(path).read_text())
    rendered = Path(sys.argv[1])
    rendered.mkdir(parents=True, exist_ok=True)
    try:
        count = check_rendered(rendered, chart_values)
        check_refusals()
        check_as_dependencies()
        check_notes()
    except Finding as finding:
        print(f"error: {finding}", file=sys.stderr)
        return 1
    print(f"charts: {count} objects hold, {len(REFUSED)} wrong values are refused", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
