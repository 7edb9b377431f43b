"""Makes the tiny models tiny_*.gguf.gz, and families.json.gz: what llama.cpp says about them and about SmolLM2 135M.

Needs `pip install xllamacpp==2026.10.11549 gguf==0.19.0 numpy`. Arguments: the GGUF file of SmolLM2 135M that
scripts/models.py fetches, and this directory. The tiny models are whole models of a family with random weights, made the
same each time: two layers, a vocabulary of bytes and a few merges. Values are logarithms of probabilities of the two best
tokens after a number of the ids: steps of a greedy continuation, or beginnings of a prompt.
"""

import gzip
import json
import os
import sys
import tempfile
import urllib.request
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

SMOLLM2, DIRECTORY = sys.argv[1], Path(sys.argv[2])
TEXTS = [
    "Hello, world!", " leading space", "don't  do   that\n\n\nplease\t\tnow", "1234567 and 3.14159",
    "naïve café — ünïcode 🙂👍🏽", "你好，世界", "def f(x):\n    return x**2  # comment\n", "I'LL we've THEY'RE",
    "a  \n b", "<|im_start|>user\nhi<|im_end|>", "$100 + 50% = ?!...", "\r\n\r\nwindows", "   ", "x", "the other thing's in",
]  # fmt: skip
# With the number of tokens to continue them by; each prefix of a tiny model's prompt is a step.
PROMPTS = [("The capital of France is", 32), ("Once upon a time", 32), ("Question: What is 2+2?\nAnswer:", 16)]
TINY_PROMPTS = [("The capital of France is the other thing; 123 + 4567 = ?", 0), ("Once upon a time in the\n\n  south", 0)]


def visible():
    """How byte-level BPE writes each byte."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = iter(range(0x100, 0x200))
    return [chr(byte) if byte in kept else chr(next(moved)) for byte in range(256)]


def byte_level(writer, pre, specials):
    merges = ["t h", "th e", "i n", "Ġ the", "Ġ t", "o n", "Ġ a", "e r", "a n", "in g", "Ċ Ċ", "Ġ Ġ", "1 2", "12 3"]
    tokens = visible() + [merge.replace(" ", "") for merge in merges] + specials
    tokens += [f"<|unused_{i}|>" for i in range(288 - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (256 + len(merges)) + [3] * (288 - 256 - len(merges)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index(specials[0]))
    writer.add_eos_token_id(tokens.index(specials[1]))


def sentencepiece(writer):
    words = ["▁", "e", "t", "a", "o", "n", "i", "h", "th", "the", "▁the", "▁t", "in", "▁a", "er", "on", "▁▁"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    tokens += [f"<unused{i}>" for i in range(288 - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(288 - 259)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(words) + [5] * (288 - 259 - len(words)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def tiny(path, architecture, vocabulary, head, has_output, seed):
    width, heads, kv_heads, feed_forward, layers = 64, 4, 2, 96, 2
    random = np.random.Generator(np.random.PCG64(seed))
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    if head != width // heads:
        writer.add_key_length(head)
        writer.add_value_length(head)
    vocabulary(writer)

    def matrix(name, rows, columns, scale):
        values = random.normal(0, scale, (rows, columns)).astype("f4")
        quantized = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name + ".weight", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    def vector(name, length, centre, scale):
        writer.add_tensor(name, random.normal(centre, scale, length).astype("f4"))

    matrix("token_embd", 288, width, 0.5)
    vector("output_norm.weight", width, 1, 0.2)
    if has_output:
        matrix("output", 288, width, 0.3)
    if architecture == "llama" and has_output:
        writer.add_tensor("rope_freqs.weight", np.linspace(1, 4, head // 2).astype("f4"))
    for layer in range(layers):
        block = f"blk.{layer}."
        vector(block + "attn_norm.weight", width, 1, 0.2)
        for part, count in [("q", heads), ("k", kv_heads), ("v", kv_heads)]:
            matrix(block + "attn_" + part, count * head, width, 0.3)
            if architecture == "qwen2":
                vector(block + f"attn_{part}.bias", count * head, 0, 0.5)
        if architecture == "qwen3":
            vector(block + "attn_q_norm.weight", head, 1, 0.3)
            vector(block + "attn_k_norm.weight", head, 1, 0.3)
        matrix(block + "attn_output", width, heads * head, 0.2)
        vector(block + "ffn_norm.weight", width, 1, 0.2)
        matrix(block + "ffn_gate", feed_forward, width, 0.3)
        matrix(block + "ffn_up", feed_forward, width, 0.3)
        matrix(block + "ffn_down", width, feed_forward, 0.2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def reference(model, prompts):
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx = 512
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)

    def post(path, **body):
        request = urllib.request.Request(
            server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request))

    def tokenize(text, add_special, parse_special):
        return post("/tokenize", content=text, add_special=add_special, parse_special=parse_special)["tokens"]

    def generate(prompt, count):
        ids = tokenize(prompt, True, False)
        if count:
            done = post("/completion", prompt=ids, n_predict=count, temperature=0, cache_prompt=False, return_tokens=True)
            ids += done["tokens"]
        steps = []
        for length in range(len(ids) - (count or len(ids)) + 1, len(ids) + 1):
            done = post("/completion", prompt=ids[:length], n_predict=1, temperature=0, cache_prompt=False, n_probs=2)
            # None where the best token is a part of a character.
            for step in done.get("completion_probabilities", [])[:1]:
                best = [[token["id"], round(token["logprob"], 5)] for token in step["top_logprobs"]]
                steps.append([length, best])
        return {"prompt": prompt, "ids": ids, "steps": steps}

    return {
        "tokenization": [{"text": text, "ids": tokenize(text, False, True)} for text in TEXTS],
        "generation": [generate(*prompt) for prompt in prompts],
        "chat": post("/apply-template", messages=[{"role": "user", "content": "What is gravity?"}])["prompt"],
    }


def main():
    llama3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    qwen = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]
    models = {
        "tiny_llama3": ("llama", lambda writer: byte_level(writer, "llama-bpe", llama3), 16, True),
        "tiny_llama2": ("llama", sentencepiece, 16, False),
        "tiny_qwen2": ("qwen2", lambda writer: byte_level(writer, "qwen2", qwen), 16, False),
        "tiny_qwen3": ("qwen3", lambda writer: byte_level(writer, "qwen2", qwen), 32, False),
    }
    golden = {"smollm2_135m": reference(SMOLLM2, PROMPTS)}
    with tempfile.TemporaryDirectory() as directory:
        for seed, (name, (architecture, vocabulary, head, has_output)) in enumerate(models.items()):
            path = Path(directory) / f"{name}.gguf"
            tiny(path, architecture, vocabulary, head, has_output, seed + 1)
            with gzip.GzipFile(DIRECTORY / f"{name}.gguf.gz", "wb", mtime=0) as file:
                file.write(path.read_bytes())
            golden[name] = reference(path, TINY_PROMPTS)
    with gzip.GzipFile(DIRECTORY / "families.json.gz", "wb", mtime=0) as file:
        file.write(json.dumps(golden, ensure_ascii=False).encode())


main()
os._exit(0)
