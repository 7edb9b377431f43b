#!/usr/bin/env python3
"""Converts a dynamically quantised int8 BERT in ONNX form to fp32 safetensors under the usual BERT names.

usage: onnx_to_safetensors.py MODEL.onnx OUT.safetensors

The matrices of such a file have lost their names: each is the second input of a MatMulInteger, and its name is that of
the bias added to the result. Weights are (q - zero_point) * scale in fp32; embeddings are gathered as int8 and carry
their own scale. The output depends on nothing but the input: tensors are sorted by name, so its SHA-256 can be pinned.
"""

import json
import struct
import sys

import numpy as np
import onnx
from onnx import numpy_helper

QUANTISED = "_quantized"
# MatMulInteger -> Cast -> Mul(scale) -> Add(bias); a Reshape or a Transpose may stand between.
MAX_STEPS_TO_BIAS = 6


class ConversionError(Exception):
    """The file is not a model this script understands."""


def dequantised(initializers: dict, base: str) -> np.ndarray:
    """Returns fp32 values of the quantised tensor `base` (its name without the suffix)."""
    values = initializers[base + QUANTISED].astype(np.float32)
    return (values - initializers[base + "_zero_point"].astype(np.float32)) * initializers[base + "_scale"]


def bias_after(output: str, consumers: dict, initializers: dict) -> str | None:
    """Follows a matrix product to the Add of its bias and returns that bias's name."""
    for _ in range(MAX_STEPS_TO_BIAS):
        following = consumers.get(output)
        if not following:
            return None
        node = following[0]
        if node.op_type == "Add":
            return next((name for name in node.input if name in initializers and name.endswith(".bias")), None)
        output = node.output[0]
    return None


def tensors(path: str) -> dict[str, np.ndarray]:
    """Reads every weight of the ONNX file as fp32, by its BERT name."""
    graph = onnx.load(path).graph
    initializers = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    consumers: dict = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)

    found = {
        name: value
        for name, value in initializers.items()
        if value.dtype == np.float32 and value.ndim >= 1 and name.endswith((".weight", ".bias"))
    }
    for node in graph.node:
        if node.op_type != "MatMulInteger" or node.input[1] not in initializers:
            continue
        bias = bias_after(node.output[0], consumers, initializers)
        if bias is None:
            raise ConversionError(f"{path}: no bias follows the matrix product {node.name}")
        weight = dequantised(initializers, node.input[1].removesuffix(QUANTISED))
        found[bias.removesuffix(".bias") + ".weight"] = weight.T
    for name in initializers:
        base = name.removesuffix(QUANTISED)
        if name != base and base.endswith(".weight") and base not in found:
            found[base] = dequantised(initializers, base)
    return {name: np.ascontiguousarray(value, dtype="<f4") for name, value in found.items()}


def write_safetensors(values: dict[str, np.ndarray], path: str) -> None:
    """Writes a safetensors file whose bytes depend on the tensors alone."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(values):
        end = offset + values[name].nbytes
        header[name] = {"dtype": "F32", "shape": list(values[name].shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name in sorted(values):
            file.write(values[name].tobytes())


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__.split("\n\n")[1], file=sys.stderr)
        return 2
    try:
        values = tensors(sys.argv[1])
    except (ConversionError, KeyError) as error:
        print(f"error: {sys.argv[1]} is not an int8 BERT as expected: {error}", file=sys.stderr)
        return 1
    write_safetensors(values, sys.argv[2])
    print(f"{sys.argv[2]}: {len(values)} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
