#!/usr/bin/env python3
"""Runs the services as the charts' pods run them, without a cluster, and stops one under load.

usage: check_pods.py BINARIES

BINARIES is a directory with model-registry, predict and rag. The charts' default values say arguments, environment, user,
ports, probes and grace; each service runs as that user without capabilities, in a root file system that cannot be written,
where only /data and /tmp can. Every service starts; its pod's probes are asked, by the gRPC health protocol and by HTTP;
then one of two replicas of the registry gets SIGTERM while callers use both: no call may fail, and the process must end by
itself within the pod's grace. Needs helm, and root (for namespaces of its own: of mounts, and of a network that is loopback
alone), which it becomes by sudo where that asks for no password.
"""

import fcntl
import os
import shlex
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import yaml

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("model-registry", "predict", "rag")
# rag is ready when predict serves its models, of which there are none here: it must say so.
READY = {"model-registry": True, "predict": True, "rag": False}
START_SECONDS = 60
CALLERS = 8
SERVING, NOT_SERVING = 1, 2
# A root of its own: the system's libraries read-only, the service's two places, nothing else.
MOUNTS = """
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$ROOT"
mkdir -p "$ROOT"/usr "$ROOT"/lib "$ROOT"/lib64 "$ROOT"/etc/ssl "$ROOT"/data "$ROOT"/tmp "$ROOT"/proc "$ROOT"/dev
for place in /usr /lib /lib64 /etc/ssl; do
  mount --bind "$place" "$ROOT$place"
  mount -o remount,bind,ro "$ROOT$place"
done
mount --rbind /proc "$ROOT/proc"
for device in null urandom; do
  touch "$ROOT/dev/$device"
  mount --bind "/dev/$device" "$ROOT/dev/$device"
done
touch "$ROOT/service"
mount --bind "$BINARY" "$ROOT/service"
mount --bind "$DATA" "$ROOT/data"
mount -t tmpfs -o mode=1777 tmpfs "$ROOT/tmp"
mount -o remount,ro "$ROOT"
cd "$ROOT"
exec chroot "$ROOT" /usr/bin/setpriv --reuid="$USER_ID" --regid="$GROUP_ID" --clear-groups --bounding-set=-all \\
  --inh-caps=-all --no-new-privs /usr/bin/env --ignore-environment --chdir=/data
"""


class Finding(Exception):
    """Something that must hold does not."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Finding(what)


def render(service: str) -> dict:
    command = ["helm", "template", service, str(ROOT / "charts" / service), "--namespace", "ml-services"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return next(document for document in yaml.safe_load_all(text) if document and document["kind"] == "Deployment")


class Pod:
    """One pod of a Deployment as a process; `shift` moves its ports, for a second replica on the same machine."""

    def __init__(self, service: str, binaries: Path, directory: Path, shift: int = 0):
        spec = render(service)["spec"]["template"]["spec"]
        self.name, self.shift, self.container = f"{service}-{shift}", shift, spec["containers"][0]
        self.grace = spec["terminationGracePeriodSeconds"]
        security = self.container["securityContext"]
        root, data, self.log = (directory / f"{self.name}.{part}" for part in ("root", "data", "log"))
        root.mkdir()
        data.mkdir()
        os.chown(data, security["runAsUser"], security["runAsGroup"])
        variables = [f"{name}={value}" for name, value in self.environment().items()]
        command = MOUNTS.rstrip() + " " + shlex.join([*variables, "/service", *self.container["args"]])
        self.process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", command],
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "ROOT": str(root), "DATA": str(data),
                "BINARY": str(binaries / service),
                "USER_ID": str(security["runAsUser"]), "GROUP_ID": str(security["runAsGroup"]),
            },
            stdin=subprocess.DEVNULL, stdout=self.log.open("w"), stderr=subprocess.STDOUT,
        )

    def environment(self) -> dict[str, str]:
        environment = {"POD_NAME": self.name}
        for variable in self.container["env"]:
            if "value" not in variable:
                continue
            name, value = variable["name"], variable["value"].replace("$(POD_NAME)", self.name)
            for other in SERVICES:
                value = value.replace(f"http://{other}:", "http://127.0.0.1:")
            if name.endswith("_LISTEN"):
                host, _, port = value.rpartition(":")
                value = f"{host}:{int(port) + self.shift}"
            environment[name] = value
        return environment

    def port(self, name: str) -> int:
        return next(p["containerPort"] for p in self.container["ports"] if p["name"] == name) + self.shift

    def require_alive(self) -> None:
        if self.process.poll() is not None:
            raise Finding(f"{self.name} ended with {self.process.returncode}:\n{self.log.read_text()[-4000:]}")

    def live(self) -> bool:
        probe = self.container["livenessProbe"]["httpGet"]
        try:
            url = f"http://127.0.0.1:{self.port(probe['port'])}{probe['path']}"
            with urllib.request.urlopen(url, timeout=2) as answer:
                return answer.status == 200
        except (OSError, urllib.error.URLError):
            return False

    def health(self, probe: str) -> int:
        """What the pod's gRPC probe would be told; 0 where nobody answers."""
        asked = self.container[probe]["grpc"]
        name = asked["service"].encode()
        with grpc.insecure_channel(f"127.0.0.1:{asked['port'] + self.shift}") as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            try:
                # HealthCheckRequest{service}, HealthCheckResponse{status}: one field each.
                answer = check(b"\x0a" + bytes([len(name)]) + name, timeout=2)
            except grpc.RpcError:
                return 0
        return answer[1] if answer[:1] == b"\x08" else 0

    def start(self, ready: bool) -> None:
        wanted = SERVING if ready else NOT_SERVING
        until = time.monotonic() + START_SECONDS
        while not (self.live() and self.health("startupProbe") == wanted and self.health("readinessProbe") == wanted):
            self.require_alive()
            require(time.monotonic() < until, f"{self.name}: its probes do not hold after {START_SECONDS} s")
            time.sleep(0.1)
        self.require_confined()

    def require_confined(self) -> None:
        """As the system sees it: the user, no capability, a root that is read-only."""
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines() if ":\t" in line)
        user = str(self.container["securityContext"]["runAsUser"])
        require(status["Uid"].split() == [user] * 4, f"{self.name} runs as {status['Uid']}")
        require(int(status["CapEff"], 16) == 0 and int(status["CapBnd"], 16) == 0, f"{self.name} has capabilities")
        require(status["NoNewPrivs"] == "1", f"{self.name} may gain privileges")
        roots = [line.split() for line in Path(f"/proc/{self.process.pid}/mountinfo").read_text().splitlines()]
        root = [fields[5] for fields in roots if fields[4] == "/"]
        require(root and "ro" in root[-1].split(","), f"{self.name} may write its root file system")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(self.grace)
            except subprocess.TimeoutExpired:
                self.process.kill()


def call_until(stop: threading.Event, addresses: list[str], method: str, failures: list[str], done: list[int]) -> None:
    """Calls both replicas in turn, as a client does that knows every pod of a headless Service.

    There is no retry policy: a call that a server has seen is made once. One that none has seen, because its connection was
    told to close (GOAWAY) at that moment, every gRPC client makes again by itself (transparent retries, gRFC A6): no server
    can keep the two from crossing.
    """
    config = '{"loadBalancingConfig": [{"round_robin": {}}]}'
    options = [("grpc.default_authority", "model-registry"), ("grpc.service_config", config)]
    with grpc.insecure_channel("ipv4:" + ",".join(addresses), options=options) as channel:
        call = channel.unary_unary(method)
        count = 0
        while not stop.is_set():
            try:
                call(b"", timeout=20, wait_for_ready=True)
                count += 1
            except grpc.RpcError as error:
                failures.append(f"{error.code().name}: {error.details()}")
        done.append(count)


def check_stop_under_load(first: Pod, second: Pod) -> None:
    stop, failures, done = threading.Event(), [], []
    addresses = [f"127.0.0.1:{pod.port('grpc')}" for pod in (first, second)]
    arguments = (stop, addresses, "/verdict.registry.v1.ModelRegistryService/ListModels", failures, done)
    callers = [threading.Thread(target=call_until, args=arguments) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    time.sleep(2)
    asked = time.monotonic()
    second.process.terminate()
    try:
        second.process.wait(second.grace)
    except subprocess.TimeoutExpired:
        raise Finding(f"{second.name} still runs {second.grace} s after SIGTERM") from None
    finally:
        took = time.monotonic() - asked
        time.sleep(1)
        stop.set()
        for caller in callers:
            caller.join()
    require(second.process.returncode == 0, f"{second.name} ended with {second.process.returncode} after SIGTERM")
    require(not failures, f"{len(failures)} of {sum(done)} calls failed, first {failures[:3]}")
    print(f"pods: SIGTERM under load: {sum(done)} calls, 0 failed; ended by itself after {took:.1f} s", file=sys.stderr)


def loopback_alone() -> None:
    """Starts this program again in a network of its own, where the charts' ports are free and nobody else comes."""
    if os.environ.get("VERDICT_OWN_NETWORK") != "1":
        os.environ["VERDICT_OWN_NETWORK"] = "1"
        os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.argv])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        set_flags, up_and_running = 0x8914, 0x1 | 0x40
        fcntl.ioctl(control, set_flags, struct.pack("16sh14x", b"lo", up_and_running))


def as_root() -> int:
    """Starts this program again as root where that asks for no password; elsewhere says what is missing."""
    try:
        may = subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0
    except OSError:
        may = False
    if may:
        kept = [f"{name}={os.environ[name]}" for name in ("PATH", "PYTHONPATH") if name in os.environ]
        os.execvp("sudo", ["sudo", "-n", "env", *kept, sys.executable, *sys.argv])
    print("check-deploy: missing: root, for namespaces of their own; the pods were not run", file=sys.stderr)
    return 0


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        return as_root()
    loopback_alone()
    binaries, pods = Path(sys.argv[1]).resolve(), []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        try:
            for service in SERVICES:
                pods.append(Pod(service, binaries, directory))
                pods[-1].start(READY[service])
            print("pods: all three run as their charts say: user, capabilities, root, probes", file=sys.stderr)
            pods.append(Pod("model-registry", binaries, directory, shift=1000))
            pods[-1].start(ready=True)
            check_stop_under_load(pods[0], pods[-1])
        except Finding as finding:
            print(f"error: {finding}", file=sys.stderr)
            return 1
        finally:
            for pod in reversed(pods):
                pod.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
