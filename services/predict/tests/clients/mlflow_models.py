#!/usr/bin/env python3
"""Logs, registers and promotes models with the ordinary mlflow client; prints what they answer themselves.

usage: mlflow_models.py TRACKING_URI

Nothing here is particular to the server. The answer is JSON: by model, rows of cells and the numbers the model gives for them.
"""

import json
import sys

import mlflow
import numpy as np
import pandas as pd
import xgboost
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression

COLUMNS = ["income", "age", "owns home"]


def register(name, log):
    """Logs a model in a run of its own, registers it, and makes it the champion."""
    with mlflow.start_run():
        version = log(name).registered_model_version
    mlflow.MlflowClient().set_registered_model_alias(name, "champion", version)


def main():
    mlflow.set_tracking_uri(sys.argv[1])
    mlflow.set_experiment("for predict")
    random = np.random.default_rng(7)
    frame = pd.DataFrame({
        "income": random.normal(size=400), "age": random.integers(18, 80, 400), "owns home": random.random(400) < 0.5,
    })
    label = (frame["income"] + frame["age"] / 50 + frame["owns home"] > 1.3).astype(int)

    classifier = xgboost.XGBClassifier(n_estimators=20, max_depth=3).fit(frame, label)
    register("approves", lambda name: mlflow.xgboost.log_model(
        classifier, name=name, registered_model_name=name, signature=infer_signature(frame, label)))

    cells = frame.to_numpy(dtype=np.float32)
    target = cells[:, 0] * 3 + cells[:, 1]
    booster = xgboost.train({"max_depth": 3}, xgboost.DMatrix(cells, label=target), 20)
    register("amounts", lambda name: mlflow.xgboost.log_model(
        booster, name=name, registered_model_name=name, signature=infer_signature(cells, target)))

    pickled = LogisticRegression().fit(frame, label)
    register("pickled", lambda name: mlflow.sklearn.log_model(pickled, name=name, registered_model_name=name))

    rows, some = cells[:50].tolist(), slice(0, 50)
    amounts = booster.predict(xgboost.DMatrix(cells[some]))
    print(json.dumps({
        "approves": {"rows": rows, "answers": classifier.predict_proba(frame[some])[:, 1].tolist(), "columns": COLUMNS},
        "amounts": {"rows": rows, "answers": amounts.tolist(), "columns": ["f0", "f1", "f2"]},
    }))


if __name__ == "__main__":
    main()
