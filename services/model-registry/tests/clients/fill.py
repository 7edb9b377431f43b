#!/usr/bin/env python3
"""Fills an MLflow server with one of everything that `import-mlflow` copies, through the ordinary `mlflow` client.

usage: fill.py TRACKING_URI DIRECTORY     (with the client's packages on PYTHONPATH)

DIRECTORY is on the disk of the server: one experiment keeps its files there instead of behind the server's proxy.
"""

import math
import os
import sys
import tempfile
from pathlib import Path

os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_HTTP_REQUEST_MAX_RETRIES="2", GIT_PYTHON_REFRESH="quiet")

import mlflow  # noqa: E402
import numpy as np  # noqa: E402
import sklearn.linear_model  # noqa: E402
import xgboost  # noqa: E402
from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param, RunTag  # noqa: E402

IS_3 = mlflow.__version__.startswith("3.")
if IS_3:
    from mlflow.entities import LoggedModelInput


def log_model(flavor, model, name: str, **more):
    """Logs and registers: `name` in MLflow 3, `artifact_path` before."""
    where = {"name": "model"} if IS_3 else {"artifact_path": "model"}
    return flavor.log_model(model, registered_model_name=name, **where, **more)


def main(uri: str, directory: str) -> None:
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    client = MlflowClient()
    rows = np.arange(40, dtype=np.float64).reshape(20, 2)
    labels = (rows.sum(axis=1) > 30).astype(int)
    linear = sklearn.linear_model.LogisticRegression().fit(rows, labels)
    trees = xgboost.XGBClassifier(n_estimators=5, max_depth=2).fit(rows, labels)

    with mlflow.start_run(run_name="in the default experiment"):
        mlflow.log_metric("x", 1.0)

    gone = client.create_experiment("gone")
    client.create_run(gone, run_name="gone with it")
    client.delete_experiment(gone)

    mlflow.set_experiment("credit")
    mlflow.set_experiment_tags({"owner": "risk", "mlflow.note.content": "scores of *applicants*"})
    with mlflow.start_run(run_name="first", tags={"team": "risk"}) as first:
        run_id = first.info.run_id
        mlflow.log_params({"depth": 3, "rate": 0.1, "text": "ü" * 500})
        # More values than one page or one insert holds, and those that are no numbers.
        values = [Metric("loss", 1.0 / (step + 1), 1_700_000_000_000 + step, step) for step in range(2500)]
        odd = [Metric("odd", value, 1_700_000_000_000, step) for step, value in enumerate((math.nan, math.inf, -math.inf))]
        for begin in range(0, len(values), 1000):
            client.log_batch(run_id, metrics=values[begin : begin + 1000])
        client.log_batch(run_id, metrics=odd)
        # Not in order: the latest value is that of the highest step.
        client.log_batch(run_id, metrics=[Metric("back", 9.0, 5, 9), Metric("back", 3.0, 7, 3)])
        mlflow.log_input(mlflow.data.from_numpy(rows, name="applicants"), context="training", tags={"kind": "real"})
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "notes", "deep").mkdir(parents=True)
            Path(folder, "notes", "größe.txt").write_text("a note\n", encoding="utf-8")
            Path(folder, "notes", "deep", "with a space.txt").write_text("", encoding="utf-8")
            Path(folder, "plain.bin").write_bytes(bytes(range(256)) * 20000)
            mlflow.log_artifacts(folder, "files")
        log_model(mlflow.sklearn, linear, "credit")
    with mlflow.start_run(run_name="second"):
        second = log_model(mlflow.xgboost, trees, "credit", input_example=rows[:2])
        if IS_3:
            mlflow.log_metric("auc", 0.75, step=3, model_id=second.model_id)
            mlflow.log_metric("nothing", math.nan, model_id=second.model_id)
            mlflow.set_logged_model_tags(second.model_id, {"stage": "trial"})
    if IS_3:
        with mlflow.start_run(run_name="evaluation") as evaluation:
            client.log_inputs(evaluation.info.run_id, models=[LoggedModelInput(model_id=second.model_id)])
    with mlflow.start_run(run_name="third"):
        log_model(mlflow.sklearn, linear, "credit")
    client.delete_model_version("credit", "2")
    client.update_registered_model("credit", "who pays back")
    client.update_model_version("credit", "1", "the first")
    client.set_registered_model_tag("credit", "owner", "risk")
    client.set_model_version_tag("credit", "1", "checked", "yes")
    client.set_registered_model_alias("credit", "champion", "1")
    client.set_registered_model_alias("credit", "challenger", "3")
    client.transition_model_version_stage("credit", "1", "Production")
    client.copy_model_version("models:/credit/1", "credit-copy")

    # Enough of them that an import can be killed in their middle.
    many = client.create_experiment("many")
    for number in range(30):
        run = client.create_run(many, run_name=f"run-{number}")
        client.log_batch(
            run.info.run_id,
            metrics=[Metric("loss", number / (step + 1), step, step) for step in range(100)],
            params=[Param("number", str(number))],
            tags=[RunTag("parity", str(number % 2))],
        )
        client.log_text(run.info.run_id, f"text of {number}\n" * 1000, "texts/one.txt")
        client.log_text(run.info.run_id, f"other text of {number}\n" * 1000, "texts/two.txt")
        client.set_terminated(run.info.run_id, "FAILED" if number == 7 else "FINISHED")
    deleted = client.create_run(many, run_name="deleted")
    client.log_text(deleted.info.run_id, "still here\n", "kept.txt")
    client.delete_run(deleted.info.run_id)

    # Files the server reads where they are, and files it cannot.
    beside = client.create_experiment("beside", artifact_location=Path(directory, "beside").as_uri())
    run = client.create_run(beside, run_name="on the server's disk")
    client.log_text(run.info.run_id, "on disk\n", "sub/here.txt")
    remote = client.create_experiment("remote", artifact_location="s3://nowhere/at-all")
    client.create_run(remote, run_name="in a bucket")
    client.create_registered_model("elsewhere")
    client.create_model_version("elsewhere", "s3://nowhere/model")

    genai = getattr(mlflow, "genai", None)
    register = genai.register_prompt if hasattr(genai, "register_prompt") else mlflow.register_prompt
    register(name="greeting", template="Hello {{name}}")
    register(name="greeting", template="Good day, {{name}}")
    client.set_prompt_alias("greeting", "live", 2)
    print(f"filled with mlflow {mlflow.__version__}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
