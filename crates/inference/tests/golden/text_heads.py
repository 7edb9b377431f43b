#!/usr/bin/env python3
"""Makes splade_tiny.json, tiny_classifier/ and tiny_classifier.json: python3 text_heads.py SPLADE_DIR

SPLADE_DIR is the cached splade-tiny of scripts/models.py. Needs torch, transformers, tokenizers, safetensors. The
classifier is a BertForSequenceClassification of random weights, large enough to tell labels apart: there is nothing to
classify, only arithmetic to compare.
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertForSequenceClassification

HERE = Path(__file__).parent
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A bank lends money to its customers.",
    "bank",
    "Information retrieval ranks documents by how well they answer a query.",
    "naïve café, 東京!",
    "Vitamin D deficiency raises the risk of bone fractures in the elderly. " * 12,
    "?",
    "loan loan loan",
]
WORDS = "loan bank money pays late never always the a customer card rate good bad risk is was on time no yes".split()
SENTENCES = [
    ("the customer pays on time", None),
    ("the customer never pays", None),
    ("bad risk", None),
    ("a good bank, a bad card?", "the rate was late"),
    ("zebra", None),
    ("the bank is on the money no yes " * 5, "loan " * 20),
]


def rounded(values) -> list[float]:
    return [float(f"{value:.7g}") for value in values]


def splade(directory: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = BertForMaskedLM.from_pretrained(directory, attn_implementation="eager").eval()
    cases = []
    for text in TEXTS:
        encoded = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            weights = torch.log1p(torch.relu(model(**encoded).logits[0])).max(dim=0).values
        ids = torch.nonzero(weights).flatten()
        cases.append(
            {
                "text": text,
                "input_ids": encoded["input_ids"][0].tolist(),
                "ids": ids.tolist(),
                "weights": rounded(weights[ids].tolist()),
            }
        )
    (HERE / "splade_tiny.json").write_text(json.dumps(cases, separators=(",", ":"), ensure_ascii=False) + "\n")


def classifier() -> None:
    directory = HERE / "tiny_classifier"
    directory.mkdir(exist_ok=True)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"?,.!", *"abcdefghijklmnopqrstuvwxyz"[:20], *WORDS]
    vocabulary = {piece: at for at, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.save(str(directory / "tokenizer.json"))

    torch.manual_seed(20)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=72,
        max_position_embeddings=80,
        initializer_range=0.4,
        num_labels=3,
        id2label={0: "repaid", 1: "late", 2: "lost"},
        label2id={"repaid": 0, "late": 1, "lost": 2},
    )
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name:
                values += torch.randn_like(values) * 0.2
    model.save_pretrained(directory, safe_serialization=True)
    cases = []
    for text, pair in SENTENCES:
        encoded = tokenizer.encode(text, pair)
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([encoded.ids]), token_type_ids=torch.tensor([encoded.type_ids])
            ).logits[0]
        cases.append(
            {
                "text": text,
                "pair": pair,
                "ids": encoded.ids,
                "logits": rounded(logits.tolist()),
                "softmax": rounded(torch.softmax(logits, 0).tolist()),
                "sigmoid": rounded(torch.sigmoid(logits).tolist()),
            }
        )
    (HERE / "tiny_classifier.json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")


splade(sys.argv[1])
classifier()
