#!/usr/bin/env python3
"""Makes models of an older XGBoost and what it answers, beside those of make.py.

usage: make_old.py VERSION [FOLDER]     (with that xgboost, and numpy below 2, in PYTHONPATH)

Writes xgb{VERSION}_*.gz and xgb{VERSION}.json.gz, which has the rows and answers as cases.json.gz.
"""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import xgboost

VERSION = sys.argv[1]
FOLDER = Path(sys.argv[2] if len(sys.argv) > 2 else Path(__file__).resolve().parent)
assert xgboost.__version__ == VERSION, xgboost.__version__
rng = np.random.RandomState(3)


def data(rows: int) -> np.ndarray:
    cells = rng.normal(size=(rows, 6)).astype(np.float32)
    cells[:, 5] = rng.randint(0, 12, size=rows)
    cells[:, 1] = np.where(rng.uniform(size=rows) < 0.2, np.nan, cells[:, 1])
    return cells


X, ROWS = data(1500), data(40)
score = X[:, 0] + np.nan_to_num(X[:, 1]) + np.sin(X[:, 5] * 2) + X[:, 2] * X[:, 3]
Y2, Y3, YC = (score > 0).astype(int), np.digitize(score, [-1, 1]), np.floor(np.exp(score * 0.3))
cases = {}


def write(name: str, content: bytes) -> None:
    with open(FOLDER / name, "wb") as file, gzip.GzipFile("", "wb", 9, file, 0) as packed:
        packed.write(content)


def add(name: str, params: dict, y, categories: bool = False) -> None:
    named = {"feature_types": ["q"] * 5 + ["c"], "enable_categorical": True} if categories else {}
    more = {"tree_method": "hist" if categories else "exact", "max_depth": 3, "eta": 0.3, "nthread": 1}
    model = xgboost.train({**more, **params}, xgboost.DMatrix(X, y, **named), 4)
    test = xgboost.DMatrix(ROWS, **named)
    margins = model.predict(test, output_margin=True)
    predictions = model.predict(test)
    if params["objective"] == "multi:softmax":
        shifted = np.exp(margins - margins.max(axis=1, keepdims=True))
        predictions = shifted / shifted.sum(axis=1, keepdims=True)
    shap = model.predict(test, pred_contribs=True)
    file = f"xgb{VERSION}_{name}"
    model.save_model(f"/tmp/{file}")
    write(f"{file}.gz", Path(f"/tmp/{file}").read_bytes())
    plain = lambda array: [float(value) for value in np.asarray(array, dtype=np.float64).ravel()]
    cases[file] = {"rows": "rows", "predictions": plain(predictions), "margins": plain(margins), "shap": plain(shap)}


kind = "json" if VERSION < "1.6" else "ubj"
add("binary.json", {"objective": "binary:logistic"}, Y2)
add(f"multi.{kind}", {"objective": "multi:softprob", "num_class": 3}, Y3)
add(f"poisson.{kind}", {"objective": "count:poisson"}, YC)
add(f"raw.{kind}", {"objective": "binary:logitraw"}, Y2)
add(f"dart.{kind}", {"objective": "reg:squarederror", "booster": "dart", "rate_drop": 0.4}, score)
if VERSION >= "1.7":
    add("cat.ubj", {"objective": "binary:logistic", "max_cat_to_onehot": 4}, Y2, True)
rows = [None if np.isnan(cell) else float(cell) for cell in ROWS.ravel()]
write(f"xgb{VERSION}.json.gz", json.dumps({"width": 6, "rows": {"rows": rows}, "cases": cases}).encode())
