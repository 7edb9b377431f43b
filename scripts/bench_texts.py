#!/usr/bin/env python3
"""Measures the peers of the bench's rows on real texts in process and prints one JSON line.

usage: bench_texts.py --inputs FILE --model DIRECTORY --peer PEER --threads N [--batch B] [--seconds S] [--runs R]

FILE is JSON: a list of inputs, each {"ids": [...], "type_ids": [...]}. Inputs of one length go through the model
together, at most B of them: no padding is computed, which is more than a peer could hope for where inputs come as they
come. A run goes through all of them once. The graph is the one bench_peers.py builds from DIRECTORY, quantised or compiled once and kept in the cache.

PEER  onnxruntime-fp32   onnxruntime's fused operators
      onnxruntime-int8   the same graph after quantize_dynamic (8-bit weights by channel, 8-bit activations)
      openvino-fp32, openvino-bf16   the same graph, by its inference precision

With more than one thread and more than one input both ways to use them are measured, and the faster is reported: one
caller whose operators share the threads, and as many callers as threads.

Output: {"peer", "version", "median_per_s", "runs": [inputs per second, each run], "mode"}
"""

import argparse
import importlib.metadata
import json
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

from bench_peers import CACHE, build_bert, faster, measure, positive, seconds, session

import numpy as np  # noqa: E402: bench_peers sets the path

PEERS = ["onnxruntime-fp32", "onnxruntime-int8", "openvino-fp32", "openvino-bf16"]


def graph(model: Path, quantised: bool) -> Path:
    """Returns the path of the fused graph, built where it isn't there or is older than what builds it."""
    path = CACHE / "bench" / f"{model.name}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    newest = max(Path(__file__).with_name(name).stat().st_mtime for name in ("bench_peers.py", "bench_texts.py"))
    if not path.exists() or path.stat().st_mtime < newest:
        build_bert(model, path)
    if not quantised:
        return path
    narrow = path.with_suffix(".int8.onnx")
    if not narrow.exists() or narrow.stat().st_mtime < path.stat().st_mtime:
        from onnx import TensorProto
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # The fused operators are unknown to ONNX's shape inference; all there is, is float.
        options = {"DefaultTensorType": TensorProto.FLOAT}
        quantize_dynamic(path, narrow, weight_type=QuantType.QInt8, per_channel=True, extra_options=options)
    return narrow


def batches(path: Path, most: int) -> list[dict[str, np.ndarray]]:
    by_length = defaultdict(list)
    for item in json.loads(path.read_text()):
        by_length[len(item["ids"])].append(item)
    made = []
    for items in by_length.values():
        for start in range(0, len(items), most):
            part = items[start : start + most]
            names = {"ids": "ids", "segments": "type_ids"}
            made.append({name: np.array([item[key] for item in part], dtype=np.int32) for name, key in names.items()})
    # The longest first, so that callers end at about the same time.
    return sorted(made, key=lambda feed: feed["ids"].size, reverse=True)


def onnxruntime_calls(path: Path, threads: int, callers: int):
    sessions = [session(path, threads // callers) for _ in range(callers)]
    return [lambda feed, one=one: one.run(None, feed) for one in sessions]


def openvino_calls(path: Path, threads: int, callers: int, precision: str):
    import openvino

    hints = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision),
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": callers,
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", hints)
    return [lambda feed, one=one: one.infer(feed) for one in (compiled.create_infer_request() for _ in range(callers))]


def check(call, model: Path, feed: dict[str, np.ndarray], precision: str) -> None:
    """Refuses to time a peer that computes something else than the fp32 graph does."""
    exact = session(graph(model, False), 1).run(None, feed)[0].astype(np.float64)
    answer = call(feed)
    got = np.asarray(answer[0], dtype=np.float64)
    if exact.shape[1] == 1:
        apart = float(np.abs(got - exact).max())
        if apart > (1e-2 if precision == "fp32" else 2.0):
            sys.exit(f"error: the peer's logits are {apart:.4f} from the reference; not timed")
        return
    lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(exact, axis=1)
    cosine = float(((got * exact).sum(axis=1) / lengths).min())
    if cosine < (0.9999 if precision == "fp32" else 0.9):
        sys.exit(f"error: the peer's embeddings differ from the reference: cosine {cosine:.4f}; not timed")


def passes(calls, feeds: list[dict[str, np.ndarray]], runs: int) -> list[float]:
    """Goes through all of `feeds`, each caller taking the next one, once to warm up and then `runs` times; items a second
    of each of these."""

    def once() -> float:
        left = feeds[::-1]

        def work(call) -> None:
            while True:
                try:
                    feed = left.pop()
                except IndexError:
                    return
                call(feed)

        threads = [threading.Thread(target=work, args=(call,)) for call in calls]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(len(feed["ids"]) for feed in feeds) / (time.perf_counter() - began)

    once()
    return [once() for _ in range(runs)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--batch", type=positive, default=32)
    parser.add_argument("--seconds", type=seconds, default=10.0, help="time for all runs together, where there is one input")
    parser.add_argument("--runs", type=positive, default=5, help="runs the median is taken over")
    arguments = parser.parse_args()
    feeds = batches(arguments.inputs, arguments.batch)
    library, precision = arguments.peer.split("-")
    path = graph(arguments.model, precision == "int8")
    modes = {"intra-op": 1}
    if arguments.threads > 1 and len(feeds) > 1:
        modes["callers"] = arguments.threads
    candidates = {}
    for mode, callers in modes.items():
        if library == "openvino":
            calls = openvino_calls(path, arguments.threads, callers, precision)
        else:
            calls = onnxruntime_calls(path, arguments.threads, callers)
        check(calls[0], arguments.model, feeds[0], precision)
        if len(feeds) > 1:
            candidates[mode] = passes(calls, feeds, arguments.runs)
        else:
            call = lambda caller, calls=calls: calls[caller](feeds[0])  # noqa: E731
            share = arguments.seconds / len(modes)
            candidates[mode] = measure(call, len(feeds[0]["ids"]), callers, share, arguments.runs)
    result = {"peer": arguments.peer, "version": importlib.metadata.version(library), **faster(candidates)}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
