"""Makes gemma3_270m.json: reference values of llama.cpp and of exact arithmetic.

Needs `pip install xllamacpp==2026.10.11549 gguf==0.19.0 numpy`. Arguments: the GGUF file and the golden file, whose texts
and prompts are kept and whose values are made anew. llama.cpp rounds what enters every product to 8 bits, which moves
logarithms of probabilities by 0.05 (rms) here. The exact values come from a forward pass in single precision over the
dequantised weights; they say which of two tokens is the better one where rounding can swap them.
"""

import json
import sys
import urllib.request

import gguf
import numpy as np
import xllamacpp
from gguf.quants import dequantize

MODEL, GOLDEN = sys.argv[1:]
HEADS, HEAD, WIDTH, WINDOW = 4, 256, 640, 512


def server():
    params = xllamacpp.CommonParams()
    params.model.path = MODEL
    params.n_ctx = 4096
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


def tokenize(llama, text, add_special):
    body = json.dumps({"content": text, "add_special": add_special, "parse_special": True}).encode()
    request = urllib.request.Request(llama.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))["tokens"]


def exact(weights, ids):
    """The normalised last hidden state of every token, in single precision."""

    def rms(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weights[name + ".weight"]

    def linear(x, name):
        return x @ weights[name + ".weight"].T

    def rope(x, base):
        angles = np.arange(len(ids))[:, None] * base ** (-2 * np.arange(HEAD // 2) / HEAD)
        cos, sin = np.cos(angles)[:, None].astype("f4"), np.sin(angles)[:, None].astype("f4")
        low, high = x[..., : HEAD // 2], x[..., HEAD // 2 :]
        return np.concatenate([low * cos - high * sin, low * sin + high * cos], -1)

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3)))

    n = len(ids)
    x = weights["token_embd.weight"][ids] * np.float32(WIDTH**0.5)
    for layer in range(18):
        block = f"blk.{layer}."
        is_global = (layer + 1) % 6 == 0
        base = 1e6 if is_global else 1e4
        h = rms(x, block + "attn_norm")
        q = rope(rms(linear(h, block + "attn_q").reshape(n, HEADS, HEAD), block + "attn_q_norm"), base)
        k = rope(rms(linear(h, block + "attn_k").reshape(n, 1, HEAD), block + "attn_k_norm"), base)[:, 0]
        v = linear(h, block + "attn_v")
        back = np.arange(n)[:, None] - np.arange(n)[None]
        seen = (back >= 0) & (is_global | (back < WINDOW))
        scores = np.where(seen, np.einsum("ihd,jd->hij", q, k) / HEAD**0.5, -1e30)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        attended = np.einsum("hij,jd->ihd", scores, v).reshape(n, -1)
        x = x + rms(linear(attended, block + "attn_output"), block + "post_attention_norm")
        h = rms(x, block + "ffn_norm")
        gated = gelu(linear(h, block + "ffn_gate")) * linear(h, block + "ffn_up")
        x = x + rms(linear(gated, block + "ffn_down"), block + "post_ffw_norm")
    return rms(x, "output_norm")


def main():
    golden = json.load(open(GOLDEN))
    llama = server()
    reader = gguf.GGUFReader(MODEL)
    weights = {t.name: np.array(dequantize(t.data, t.tensor_type), dtype="f4") for t in reader.tensors}
    tokenization = [{"text": t["text"], "ids": tokenize(llama, t["text"], False)} for t in golden["tokenization"]]
    generation = []
    for prompt in (g["prompt"] for g in golden["generation"]):
        request = {"prompt": prompt, "n_predict": 32, "temperature": 0, "top_k": 1, "cache_prompt": False, "n_probs": 2}
        choice = llama.handle_completions(request)["choices"][0]
        ids = [step["id"] for step in choice["logprobs"]["content"]]
        prompt_ids = tokenize(llama, prompt, True)
        hidden = exact(weights, np.array(prompt_ids + ids))[len(prompt_ids) - 1 : -1]
        logits = hidden @ weights["token_embd.weight"].T
        logits -= logits.max(-1, keepdims=True)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        best = np.argsort(-logprobs, -1)[:, :2]
        exact_best = [[[int(id), round(float(step[id]), 4)] for id in two] for step, two in zip(logprobs, best)]
        generation.append(
            {"prompt": prompt, "prompt_ids": prompt_ids, "ids": ids, "text": choice["text"], "exact_best": exact_best}
        )
    head = {"model": "gemma-3-270m-q4_k_m.gguf", "engine": "llama.cpp by xllamacpp 2026.10.11549, one thread, greedy"}
    with open(GOLDEN, "w") as file:
        json.dump({**head, "tokenization": tokenization, "generation": generation}, file, ensure_ascii=False)
        file.write("\n")


main()
