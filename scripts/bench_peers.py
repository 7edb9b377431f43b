#!/usr/bin/env python3
"""Measures the peers of `make bench` in process and prints one JSON line.

usage: bench_peers.py embed --threads N --batch B --tokens T [--seconds S] [--runs R]
       bench_peers.py predict --rows ROWS --threads N [--seconds S] [--runs R]
       bench_peers.py generate --threads N [--prompt P] [--tokens T] [--together C]
       bench_peers.py trees --engine xgboost|onnxruntime|lightgbm --work row|rows|shap --threads N [--seconds S] [--runs R]

  embed    all-MiniLM-L6-v2 in fp32 by onnxruntime: sentences a second, from token ids to normalised embeddings.
           The graph is built here from the same safetensors, with onnxruntime's own fused operators, and must give the
           reference embeddings (cosine >= 0.9999) before anything is timed. Lengths are fixed: no padding, no mask.
  generate Gemma 3 270M by llama.cpp (xllamacpp): tokens a second of reading a prompt of P tokens, of continuing one text by
           T tokens, and of continuing C together; and the most megabytes the process ever had. Prints these instead of
           `median_per_s`.
  predict  version 1 of the credit-risk model by xgboost: rows a second, from a float array to probabilities.
  trees    300 trees on the Adult census data: one row a call (the median call, as calls a second), 10,000 rows a call
           (to probabilities), or SHAP values; each engine must give the reference probabilities first. onnxruntime
           runs a graph that is built here from the XGBoost model; lightgbm has a model of its own.

With more than one thread both ways to use them are measured, and the faster is reported: one caller whose operators
share the threads ("intra-op"), and as many callers as threads, one thread each ("callers").

Output: {"peer", "version", "median_per_s", "runs": [per second, each run], "mode", ...the arguments}
"""

import argparse
import csv
import gzip
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
sys.path.insert(0, subprocess.check_output([SCRIPTS / "python_env.sh", "bench"], text=True).strip())

import numpy as np  # noqa: E402

REPOSITORY = SCRIPTS.parent
CACHE = Path(os.environ.get("VERDICT_CACHE") or Path.home() / ".cache" / "verdict").expanduser()
MINILM = CACHE / "models" / "all-MiniLM-L6-v2"
GEMMA = CACHE / "models" / "gemma-3-270m" / "gemma-3-270m-q4_k_m.gguf"
CREDIT_RISK = REPOSITORY / "crates" / "demo" / "data" / "credit-risk"
GOLDEN = REPOSITORY / "crates" / "inference" / "tests" / "golden"
WARM_UP_SECONDS = 0.5
CLS, SEP, FIRST_WORD, VOCABULARY = 101, 102, 1000, 30522


def measure(call, per_call: int, callers: int, seconds: float, runs: int) -> list[float]:
    """Calls `call(caller)` from `callers` threads for `seconds` in all, and returns each run's items a second."""

    def run(duration: float) -> float:
        done = [0] * callers
        start = threading.Barrier(callers + 1)

        def loop(caller: int) -> None:
            start.wait()
            end = time.perf_counter() + duration
            while time.perf_counter() < end:
                call(caller)
                done[caller] += 1

        threads = [threading.Thread(target=loop, args=(caller,)) for caller in range(callers)]
        for thread in threads:
            thread.start()
        start.wait()
        began = time.perf_counter()
        for thread in threads:
            thread.join()
        return sum(done) * per_call / (time.perf_counter() - began)

    run(WARM_UP_SECONDS)
    return [run(seconds / runs) for _ in range(runs)]


def faster(candidates: dict[str, list[float]]) -> dict:
    mode = max(candidates, key=lambda name: statistics.median(candidates[name]))
    runs = candidates[mode]
    return {
        "median_per_s": round(statistics.median(runs), 2),
        "runs": [round(value, 2) for value in runs],
        "mode": mode,
    }


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    values = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            values[name] = np.frombuffer(content[begin:end], dtype="<f4").reshape(entry["shape"])
    return values


def build_bert(model: Path, path: Path) -> None:
    """Writes the fused fp32 graph of a directory's weights: ids -> embedding, attention, feed-forward; then the mean over
    tokens and L2, or, where the weights have a classifier, the pooled first token and its logits."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = {name.removeprefix("bert."): value for name, value in read_safetensors(model / "model.safetensors").items()}
    config = json.loads((model / "config.json").read_text())
    heads, epsilon = config["num_attention_heads"], config["layer_norm_eps"]
    nodes, constants = [], []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def weight(name: str, transpose: bool = False) -> str:
        return constant(name, weights[name].T if transpose else weights[name])

    def node(operator: str, inputs: list[str], output: str, domain: str = "com.microsoft", **attributes) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], domain=domain, **attributes))
        return output

    embeddings = [weight(f"embeddings.{kind}_embeddings.weight") for kind in ("word", "position", "token_type")]
    norm = [weight(f"embeddings.LayerNorm.{kind}") for kind in ("weight", "bias")]
    nodes.append(
        helper.make_node(
            "EmbedLayerNormalization",
            ["ids", "segments", *embeddings, *norm],
            ["embedded", "unused_mask"],
            domain="com.microsoft",
            epsilon=epsilon,
        )
    )
    hidden = "embedded"
    for index in range(config["num_hidden_layers"]):
        layer, prefix = f"encoder.layer.{index}", f"l{index}_"
        parts = [f"{layer}.attention.self.{name}" for name in ("query", "key", "value")]
        qkv = constant(prefix + "qkv", np.concatenate([weights[part + ".weight"].T for part in parts], axis=1))
        bias = constant(prefix + "qkv_bias", np.concatenate([weights[part + ".bias"] for part in parts]))
        context = node("Attention", [hidden, qkv, bias], prefix + "context", num_heads=heads)

        def skip_norm(block: str, inputs: str, residual: str, output: str) -> str:
            product = node("MatMul", [inputs, weight(f"{block}.dense.weight", True)], output + "_product", domain="")
            norm = [weight(f"{block}.LayerNorm.{kind}") for kind in ("weight", "bias")]
            return node(
                "SkipLayerNormalization",
                [product, residual, *norm, weight(f"{block}.dense.bias")],
                output,
                epsilon=epsilon,
            )

        attended = skip_norm(f"{layer}.attention.output", context, hidden, prefix + "attended")
        inner = f"{layer}.intermediate.dense"
        wide = node("MatMul", [attended, weight(inner + ".weight", True)], prefix + "wide", domain="")
        active = node("BiasGelu", [wide, weight(inner + ".bias")], prefix + "active")
        hidden = skip_norm(f"{layer}.output", active, attended, prefix + "out")
    if "classifier.weight" in weights:
        first = node("Gather", [hidden, constant("zero", np.array(0))], "first", domain="", axis=1)
        pooler = [weight("pooler.dense.weight", True), weight("pooler.dense.bias")]
        pooled = node("Tanh", [node("Gemm", [first, *pooler], "pooled", domain="")], "active_pooled", domain="")
        classifier = [weight("classifier.weight", True), weight("classifier.bias")]
        node("Gemm", [pooled, *classifier], "embedding", domain="")
        width = len(weights["classifier.bias"])
    else:
        mean = node("ReduceMean", [hidden, constant("axis", np.array([1]))], "mean", domain="", keepdims=0)
        node("LpNormalization", [mean], "embedding", domain="", axis=1, p=2)
        width = config["hidden_size"]

    shape = ["batch", "tokens"]
    graph = helper.make_graph(
        nodes,
        model.name,
        [helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name in ("ids", "segments")],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", width])],
        constants,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    partial = path.with_suffix(f".{os.getpid()}")
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), partial)
    partial.rename(path)


def session(path: Path | bytes, threads: int):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def inputs(ids: list[list[int]]) -> dict[str, np.ndarray]:
    values = np.array(ids, dtype=np.int32)
    return {"ids": values, "segments": np.zeros_like(values)}


def worst_cosine(path: Path) -> float:
    """Returns the smallest cosine between this graph's embeddings and the reference ones."""
    reference = json.loads((GOLDEN / "minilm_l6_v2.json").read_text())
    model, worst = session(path, 1), 1.0
    for item in reference:
        got = model.run(None, inputs([item["input_ids"]]))[0][0].astype(np.float64)
        expected = np.array(item["embedding"], dtype=np.float64)
        worst = min(worst, float(got @ expected / np.linalg.norm(got) / np.linalg.norm(expected)))
    return worst


def embed(arguments: argparse.Namespace) -> dict:
    import onnxruntime

    path = CACHE / "bench" / "minilm.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not (MINILM / "model.safetensors").exists():
        sys.exit(f"error: {MINILM} is missing; run `make models`")
    if not path.exists() or path.stat().st_mtime < Path(__file__).stat().st_mtime:
        build_bert(MINILM, path)
    cosine = worst_cosine(path)
    if cosine < 0.9999:
        sys.exit(f"error: the peer's embeddings differ from the reference: cosine {cosine:.6f}; not timed")

    random = np.random.default_rng(7)
    words = random.integers(FIRST_WORD, VOCABULARY, (arguments.batch, arguments.tokens - 2))
    feed = inputs([[CLS, *row, SEP] for row in words.tolist()])
    candidates = {}
    for mode, callers in {"intra-op": 1, "callers": arguments.threads}.items():
        if mode == "callers" and arguments.threads == 1:
            continue
        sessions = [session(path, arguments.threads // callers) for _ in range(callers)]
        call = lambda caller, sessions=sessions: sessions[caller].run(None, feed)  # noqa: E731
        share = arguments.seconds / (2 if arguments.threads > 1 else 1)
        candidates[mode] = measure(call, arguments.batch, callers, share, arguments.runs)
    return {"peer": "onnxruntime", "version": onnxruntime.__version__, **faster(candidates), "cosine": round(cosine, 6)}


def credit_rows(count: int) -> np.ndarray:
    """Returns `count` applications as the model takes them, the thousand real ones over and over."""
    signature = json.loads((CREDIT_RISK / "signature.json").read_text())["inputs"]
    with gzip.open(CREDIT_RISK / "german_credit.csv.gz", "rt", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    codes = {feature["name"]: feature.get("categories") for feature in signature}
    rows = [
        [float(row[name] if known is None else known.index(row[name])) for name, known in codes.items()]
        for row in table
    ]
    return np.resize(np.array(rows, dtype=np.float32), (count, len(codes)))


def predict(arguments: argparse.Namespace) -> dict:
    import xgboost

    rows = credit_rows(arguments.rows)
    model = CREDIT_RISK / "1" / "model.json"
    names = [feature["name"] for feature in json.loads((CREDIT_RISK / "signature.json").read_text())["inputs"]]
    ways = {
        "inplace_predict": lambda booster: booster.inplace_predict(rows, validate_features=False),
        # The matrix is part of the work: predicting the same one again would only read a cached result.
        "predict": lambda booster: booster.predict(xgboost.DMatrix(rows, feature_names=names)),
    }
    modes = {"intra-op": 1} | ({"callers": arguments.threads} if arguments.threads > 1 else {})
    share = arguments.seconds / len(ways) / len(modes)
    candidates = {}
    for mode, callers in modes.items():
        threads = arguments.threads // callers
        boosters = [xgboost.Booster({"nthread": threads}, model_file=model) for _ in range(callers)]
        for name, way in ways.items():
            call = lambda caller, way=way, boosters=boosters: way(boosters[caller])  # noqa: E731
            candidates[f"{name}, {mode}"] = measure(call, arguments.rows, callers, share, arguments.runs)
    return {"peer": "xgboost", "version": xgboost.__version__, **faster(candidates)}


def generate(arguments: argparse.Namespace) -> dict:
    import importlib.metadata

    import xllamacpp

    def serve(parallel: int):
        params = xllamacpp.CommonParams()
        params.model.path = str(GEMMA)
        params.n_parallel = parallel
        params.n_ctx = parallel * (arguments.prompt + arguments.tokens)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = arguments.threads
        params.verbosity = 0
        return xllamacpp.Server(params)

    def complete(server, prompt, tokens: int) -> dict:
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        return server.handle_completions(body)["timings"]

    def peak_mb() -> float:
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024

    if not GEMMA.exists():
        sys.exit(f"error: {GEMMA} is missing; run `make models`")
    server = serve(1)
    prompt = [2] + [FIRST_WORD + at * 7919 % 30_000 for at in range(arguments.prompt - 1)]
    prefill = complete(server, prompt, 1)["prompt_per_second"]
    decode = complete(server, "The bank asked for", arguments.tokens)["predicted_per_second"]
    peak = peak_mb()
    server = serve(arguments.together)
    texts = [f"Text {index}: the bank" for index in range(arguments.together)]
    threads = [threading.Thread(target=complete, args=(server, text, arguments.tokens)) for text in texts]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = arguments.together * arguments.tokens / (time.perf_counter() - began)
    return {
        "peer": "llama.cpp (xllamacpp)",
        "version": importlib.metadata.version("xllamacpp"),
        "prefill_per_s": round(prefill, 1),
        "decode_per_s": round(decode, 1),
        "together_per_s": round(together, 1),
        "peak_mb": round(peak, 1),
    }


def adult_rows() -> tuple[np.ndarray, np.ndarray]:
    """Returns the reference rows, and 10,000 rows made of their columns in other orders, as the bench makes them."""
    reference = json.loads((GOLDEN / "adult_rows.json").read_text())["rows"]
    cells = np.array([[np.nan if cell is None else cell for cell in row] for row in reference], dtype=np.float32)
    row, column = np.arange(10_000)[:, None], np.arange(cells.shape[1])[None, :]
    return cells, np.ascontiguousarray(cells[(row * (2 * column + 3) + row // len(cells)) % len(cells), column])


def unpacked(name: str) -> bytes:
    with gzip.open(GOLDEN / name) as file:
        return file.read()


def onnx_of_xgboost(model: dict) -> bytes:
    """Writes the trees of a binary XGBoost model as TreeEnsembleClassifier."""
    from onnx import TensorProto, helper

    learner = model["learner"]
    base = float(learner["learner_model_param"]["base_score"].strip("[]"))
    columns: dict[str, list] = {name: [] for name in (
        "treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids", "missing_value_tracks_true"
    )}
    leaves: dict[str, list] = {name: [] for name in ("treeids", "nodeids", "ids", "weights")}
    for number, tree in enumerate(learner["gradient_booster"]["model"]["trees"]):
        for node, left in enumerate(tree["left_children"]):
            leaf = left == -1
            value = tree["split_conditions"][node]
            entry = (number, node, 0, "LEAF", 0.0, 0, 0, 0) if leaf else (
                number, node, tree["split_indices"][node], "BRANCH_LT", value, left, tree["right_children"][node],
                tree["default_left"][node],
            )
            for column, cell in zip(columns.values(), entry):
                column.append(cell)
            if leaf:
                for column, cell in zip(leaves.values(), (number, node, 0, value)):
                    column.append(cell)
    node = helper.make_node(
        "TreeEnsembleClassifier", ["rows"], ["label", "probabilities"], domain="ai.onnx.ml",
        base_values=[float(np.log(base / (1 - base)))], classlabels_int64s=[0, 1], post_transform="LOGISTIC",
        **{f"nodes_{name}": column for name, column in columns.items()},
        **{f"class_{name}": column for name, column in leaves.items()},
    )
    width = int(learner["learner_model_param"]["num_feature"])
    graph = helper.make_graph(
        [node], "trees", [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, width])],
        [helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
         helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])],
    )
    opsets = [helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def tree_engine(name: str, threads: int):
    """Returns an engine's version, and how it scores rows and explains them (None where it does not)."""
    if name == "xgboost":
        import xgboost

        booster = xgboost.Booster({"nthread": threads})
        booster.load_model(bytearray(unpacked("adult_xgb300.json.gz")))
        names = booster.feature_names
        shap = lambda rows: booster.predict(xgboost.DMatrix(rows, feature_names=names), pred_contribs=True)  # noqa: E731
        return xgboost.__version__, lambda rows: booster.inplace_predict(rows, validate_features=False), shap
    if name == "lightgbm":
        import lightgbm

        booster = lightgbm.Booster(model_str=unpacked("adult_lgb300.txt.gz").decode())
        score = lambda rows: booster.predict(rows, num_threads=threads)  # noqa: E731
        return lightgbm.__version__, score, lambda rows: booster.predict(rows, pred_contrib=True, num_threads=threads)
    import onnxruntime

    model = session(onnx_of_xgboost(json.loads(unpacked("adult_xgb300.json.gz"))), threads)
    score = lambda rows: model.run(["probabilities"], {"rows": rows})[0][:, 1]  # noqa: E731
    return onnxruntime.__version__, score, None


def trees(arguments: argparse.Namespace) -> dict:
    cells, rows = adult_rows()
    version, score, shap = tree_engine(arguments.engine, arguments.threads)
    reference = json.loads((GOLDEN / "adult_rows.json").read_text())
    if arguments.engine == "lightgbm":
        with gzip.open(GOLDEN / "adult_lgb300_rows.json.gz") as file:
            reference = json.load(file)
    expected = np.array(reference["probability"])
    apart = np.abs(score(cells[: len(expected)]) - expected).max()
    if apart > 1e-6:
        sys.exit(f"error: {arguments.engine} is {apart} from the reference probabilities; not timed")
    if arguments.work == "row":
        singles = [np.ascontiguousarray(rows[at : at + 1]) for at in range(len(rows))]
        runs = []
        for _ in range(arguments.runs):
            took, end, at = [], time.perf_counter() + arguments.seconds / arguments.runs, 0
            while time.perf_counter() < end:
                began = time.perf_counter()
                score(singles[at % len(singles)])
                took.append(time.perf_counter() - began)
                at += 1
            runs.append(1 / statistics.median(took))
        return {"peer": arguments.engine, "version": version, **faster({"one caller": runs})}
    if arguments.work == "shap" and shap is None:
        sys.exit(f"error: {arguments.engine} has no SHAP values")
    modes = {"intra-op": 1} | ({"callers": arguments.threads} if arguments.threads > 1 else {})
    candidates = {}
    for mode, callers in modes.items():
        engines = [tree_engine(arguments.engine, arguments.threads // callers)[1:] for _ in range(callers)]
        part = rows if arguments.work == "rows" else rows[:500]
        way = 0 if arguments.work == "rows" else 1
        call = lambda caller, engines=engines, part=part, way=way: engines[caller][way](part)  # noqa: E731
        candidates[mode] = measure(call, len(part), callers, arguments.seconds / len(modes), arguments.runs)
    return {"peer": arguments.engine, "version": version, **faster(candidates)}


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 3600 seconds")
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, command in (("embed", embed), ("predict", predict), ("trees", trees), ("generate", generate)):
        options = commands.add_parser(name)
        options.set_defaults(command=command)
        options.add_argument("--threads", type=positive, default=1)
        if name == "generate":
            options.add_argument("--prompt", type=positive, default=512)
            options.add_argument("--tokens", type=positive, default=128)
            options.add_argument("--together", type=positive, default=8)
            continue
        options.add_argument("--seconds", type=seconds, default=10.0, help="time for all runs together")
        options.add_argument("--runs", type=positive, default=5, help="runs the median is taken over")
        if name == "embed":
            options.add_argument("--batch", type=positive, default=1)
            options.add_argument("--tokens", type=positive, default=32, help="per sentence, [CLS] and [SEP] included")
        elif name == "trees":
            options.add_argument("--engine", choices=("xgboost", "onnxruntime", "lightgbm"), required=True)
            options.add_argument("--work", choices=("row", "rows", "shap"), required=True)
        else:
            options.add_argument("--rows", type=positive, default=1)
    arguments = parser.parse_args()
    if arguments.command is embed and not 3 <= arguments.tokens <= 512:
        parser.error("--tokens must be between 3 and 512")
    result = arguments.command(arguments)
    given = {name: value for name, value in vars(arguments).items() if name != "command"}
    print(json.dumps(given | result), flush=True)
    # llama.cpp's server threads do not end by themselves.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
