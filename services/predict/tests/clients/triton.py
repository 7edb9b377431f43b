#!/usr/bin/env python3
"""Drives predict with the ordinary tritonclient; whatever does not hold ends it with an error.

usage: triton.py ADDRESS GOLDEN_DIR

Serves as an example as well: nothing here is particular to this server but the names of models and tensors.
"""

import asyncio
import importlib.metadata
import json
import queue
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as aio
from tritonclient.utils import InferenceServerException


def refused(what, *needles):
    """Returns the message of the refusal; it names all needles."""
    try:
        what()
    except InferenceServerException as error:
        message = str(error)
        assert all(needle in message for needle in needles), message
        return message
    raise AssertionError(f"not refused: {needles}")


def matrix(rows):
    tensor = grpc.InferInput("input", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return tensor


def texts(lines):
    tensor = grpc.InferInput("text", [len(lines)], "BYTES")
    tensor.set_data_from_numpy(np.array([line.encode() for line in lines], dtype=np.object_))
    return tensor


def server(client):
    assert client.is_server_live() and client.is_server_ready()
    assert "statistics" in client.get_server_metadata().extensions
    assert client.is_model_ready("credit-risk") and client.is_model_ready("credit-risk", "1")
    assert not client.is_model_ready("nobody")
    index = client.get_model_repository_index()
    assert {(m.name, m.state) for m in index.models} >= {("credit-risk", "READY"), ("all-MiniLM-L6-v2", "READY")}


def tabular(client, golden):
    metadata = client.get_model_metadata("credit-risk")
    assert [list(t.shape) for t in metadata.inputs] == [[-1, 20]]
    config = client.get_model_config("credit-risk").config
    assert (config.max_batch_size, config.input[0].name, list(config.input[0].dims)) == (0, "input", [-1, 20])

    rows = np.array(golden["rows"], dtype=np.float32)
    outputs = [grpc.InferRequestedOutput("margin")]
    result = client.infer("credit-risk", [matrix(rows)], model_version="1", request_id="r1", outputs=outputs)
    np.testing.assert_allclose(result.as_numpy("margin"), np.array(golden["margin"]), rtol=2e-6, atol=2e-6)
    assert result.as_numpy("probability") is None
    assert (result.get_response().id, result.get_response().model_version) == ("r1", "1")
    everything = client.infer("credit-risk@champion", [matrix(rows)], priority=1, timeout=5_000_000)
    np.testing.assert_allclose(everything.as_numpy("probability"), np.array(golden["probability"]), atol=2e-6)

    squeezed = client.infer("credit-risk", [matrix(rows)], compression_algorithm="gzip")
    np.testing.assert_array_equal(squeezed.as_numpy("margin"), everything.as_numpy("margin"))

    refused(lambda: client.infer("credit-risk", [matrix(rows[:, :19])]), "INVALID_ARGUMENT", "inputs[0].shape")
    refused(lambda: client.infer("nobody", [matrix(rows)]), "NOT_FOUND", "nobody")
    wrong = grpc.InferInput("input", [1, 20], "FP64")
    wrong.set_data_from_numpy(np.zeros((1, 20)))
    refused(lambda: client.infer("credit-risk", [wrong]), "INVALID_ARGUMENT", "inputs[0].datatype")
    refused(lambda: client.infer("credit-risk", [matrix(rows)], sequence_id=7), "parameters.sequence_id")

    done = queue.Queue()
    client.async_infer("credit-risk", [matrix(rows[:1])], callback=lambda result, error: done.put((result, error)))
    result, error = done.get(timeout=30)
    assert error is None and result.as_numpy("margin").shape == (1,)


def embedding(client, golden):
    cases = [case for case in golden if case["text"]]
    result = client.infer("all-MiniLM-L6-v2", [texts([case["text"] for case in cases])])
    vectors = result.as_numpy("embedding")
    expected = np.array([case["embedding"] for case in cases])
    assert vectors.shape == expected.shape
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
    assert list(result.as_numpy("tokens")) == [len(case["input_ids"]) for case in cases]
    refused(lambda: client.infer("all-MiniLM-L6-v2", [texts(["a", ""])]), "inputs[0].contents[1]")
    named = [grpc.InferRequestedOutput("embedding"), grpc.InferRequestedOutput("error")]
    result = client.infer("all-MiniLM-L6-v2", [texts(["a", ""])], outputs=named)
    assert result.as_numpy("error")[0] == b"" and result.as_numpy("error")[1].startswith(b"EMPTY_INPUT")
    assert np.isnan(result.as_numpy("embedding")[1]).all()


def stream(client, golden):
    rows = np.array(golden["rows"], dtype=np.float32)
    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for number in range(20):
        name = "nobody" if number == 7 else "credit-risk"
        client.async_stream_infer(name, [matrix(rows[number : number + 1])], request_id=str(number))
    for number in range(20):
        result, error = answers.get(timeout=30)
        if number == 7:
            assert result is None and "not served" in str(error), error
        else:
            assert error is None and result.get_response().id == str(number)
            np.testing.assert_allclose(result.as_numpy("margin"), golden["margin"][number], rtol=1e-5, atol=1e-5)
    client.stop_stream()

    # A caller that leaves in the middle; the server goes on.
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for number in range(200):
        client.async_stream_infer("credit-risk", [matrix(rows)], request_id=str(number))
    answers.get(timeout=30)
    client.stop_stream(cancel_requests=True)
    assert client.is_server_live()


def repository(client):
    before = client.get_inference_statistics("credit-risk").model_stats[0]
    assert before.inference_stats.success.count > 0 and before.inference_stats.fail.count > 0
    assert before.execution_count > 0 and before.last_inference > 0

    assert not client.is_model_ready("credit-risk", "2")
    client.load_model("credit-risk@challenger")
    assert client.is_model_ready("credit-risk", "2") and client.is_model_ready("credit-risk@challenger")
    client.load_model("credit-risk@challenger")
    client.unload_model("credit-risk@challenger")
    assert not client.is_model_ready("credit-risk", "2") and client.is_model_ready("credit-risk", "1")
    refused(lambda: client.unload_model("credit-risk@challenger"), "NOT_FOUND")
    refused(lambda: client.load_model("credit-risk@nobody"), "credit-risk@nobody")
    refused(lambda: client.load_model("credit-risk", config="{}"), "parameters.config")


async def asynchronous(address, golden):
    rows = np.array(golden["rows"], dtype=np.float32)
    client = aio.InferenceServerClient(address)
    results = await asyncio.gather(*(client.infer("credit-risk", [matrix(rows[i : i + 2])]) for i in range(20)))
    for i, result in enumerate(results):
        np.testing.assert_allclose(result.as_numpy("margin"), golden["margin"][i : i + 2], rtol=1e-5, atol=1e-5)
    await client.close()


def main():
    address, golden = sys.argv[1], Path(sys.argv[2])
    german = json.loads((golden / "german_rows.json").read_text())
    minilm = json.loads((golden / "minilm_l6_v2.json").read_text())
    client = grpc.InferenceServerClient(address)
    server(client)
    tabular(client, german)
    embedding(client, minilm)
    stream(client, german)
    asyncio.run(asynchronous(address, german))
    repository(client)
    client.close()
    print(f"all held with tritonclient {importlib.metadata.version('tritonclient')}")


if __name__ == "__main__":
    main()
