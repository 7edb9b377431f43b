#!/usr/bin/env python3
"""Trains version 2 of the demo's credit-risk model and writes crates/demo/data/credit-risk/2/model.json.

usage: train_credit_risk.py [--check]

Version 1 is 100 trees over all twenty features. Version 2 is shallower, regularised, and never splits on sex,
age or origin: those three columns are hidden from it, so their contribution to a decision is always zero. Both are
scored on the same 200 rows, which neither has seen (`HELD_OUT`). One thread and a fixed seed make the bytes repeat;
--check trains again and compares them with the file.
"""

import argparse
import csv
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
sys.path.insert(0, subprocess.check_output([SCRIPTS / "python_env.sh", "bench"], text=True).strip())

import numpy as np  # noqa: E402
import xgboost  # noqa: E402

DATA = SCRIPTS.parent / "crates" / "demo" / "data" / "credit-risk"
HIDDEN = ("personal_status_and_sex", "age_in_years", "foreign_worker")
PARAMETERS = {
    "objective": "binary:logistic",
    "tree_method": "hist",
    "max_depth": 3,
    "eta": 0.06,
    "lambda": 4.0,
    "min_child_weight": 3.0,
    "subsample": 0.8,
    "colsample_bytree": 0.8,
    "seed": 20,
    "nthread": 1,
}
ROUNDS = 160
HELD_OUT = "held_out.json"


def read() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Returns feature names, the encoded rows and whether each credit went bad."""
    signature = json.loads((DATA / "signature.json").read_text())["inputs"]
    with gzip.open(DATA / "german_credit.csv.gz", "rt", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))

    def encoded(row: dict, feature: dict) -> float:
        text = row[feature["name"]]
        return float(feature["categories"].index(text)) if "categories" in feature else float(text)

    rows = np.array([[encoded(row, feature) for feature in signature] for row in table], dtype=np.float32)
    bad = np.array([row["creditability"] == "bad" for row in table])
    return [feature["name"] for feature in signature], rows, bad


def auc(score: np.ndarray, bad: np.ndarray) -> float:
    """Returns the chance that a bad credit scores above a good one, ties counting half."""
    above = (score[bad][:, None] > score[~bad][None, :]).mean()
    equal = (score[bad][:, None] == score[~bad][None, :]).mean()
    return float(above + equal / 2)


def train(names: list[str], rows: np.ndarray, bad: np.ndarray) -> xgboost.Booster:
    seen = rows.copy()
    seen[:, [names.index(name) for name in HIDDEN]] = np.nan
    return xgboost.train(PARAMETERS, xgboost.DMatrix(seen, label=bad, feature_names=names), ROUNDS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the carried file instead of writing it")
    check = parser.parse_args().check

    names, rows, bad = read()
    held_out = np.zeros(len(rows), dtype=bool)
    held_out[json.loads((DATA / HELD_OUT).read_text())] = True
    booster = train(names, rows[~held_out], bad[~held_out])
    unseen = xgboost.DMatrix(rows[held_out], feature_names=names)
    first = xgboost.Booster(model_file=DATA / "1" / "model.json")
    print(f"trained on {(~held_out).sum()} rows; AUC on {held_out.sum()} held-out rows:")
    print(f"  version 1: {auc(first.predict(unseen), bad[held_out]):.4f}")
    print(f"  version 2: {auc(booster.predict(unseen), bad[held_out]):.4f}")

    carried = DATA / "2" / "model.json"
    with tempfile.TemporaryDirectory() as directory:
        fresh = Path(directory) / "model.json"
        booster.save_model(fresh)
        if check:
            if fresh.read_bytes() != carried.read_bytes():
                print(f"error: {carried} is not what this script trains", file=sys.stderr)
                return 1
            print(f"{carried.name} of version 2 is what this script trains")
        else:
            carried.write_bytes(fresh.read_bytes())
            print(f"wrote {carried}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
