#!/usr/bin/env python3
"""Drives a registry through the ordinary `mlflow` client, as an ML engineer's training code does.

usage: drive.py TRACKING_URI     (with the client's packages on PYTHONPATH)

Prints one line per claim that held; ends at the first that did not.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0", GIT_PYTHON_REFRESH="quiet")

import mlflow  # noqa: E402
import numpy as np  # noqa: E402
import sklearn.linear_model  # noqa: E402
import xgboost  # noqa: E402
from mlflow import MlflowClient  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

IS_3 = mlflow.__version__.startswith("3.")


def holds(claim: str, truth: bool, found: object = "") -> None:
    if not truth:
        sys.exit(f"does not hold with mlflow {mlflow.__version__}: {claim}; found {found!r}")
    print(f"holds: {claim}")


def refused(claim: str, call, text: str) -> None:
    try:
        call()
    except MlflowException as error:
        holds(claim, text in str(error), str(error))
    else:
        holds(claim, False, "no error")


def log_model(flavor, model, name: str, **more):
    """Logs and registers: `name` in MLflow 3, `artifact_path` before."""
    where = {"name": "model"} if IS_3 else {"artifact_path": "model"}
    return flavor.log_model(model, registered_model_name=name, **where, **more)


def evaluations(client, experiment_id):
    """Evaluation datasets and scorers, which clients know since 3.4."""
    dataset = client.create_dataset(name="qa", experiment_id=[experiment_id], tags={"team": "risk"})
    dataset.merge_records([{"inputs": {"q": "x"}, "expectations": {"a": "y"}}, {"inputs": {"q": "z"}}])
    dataset.merge_records([{"inputs": {"q": "x"}, "expectations": {"b": "y"}}])
    records = client.get_dataset(dataset.dataset_id).to_df()
    holds("a record is known by its inputs", list(records["inputs"]) == [{"q": "x"}, {"q": "z"}], records)
    holds("and is merged", records["expectations"][0] == {"a": "y", "b": "y"}, records)
    holds("and has a source", list(records["source_type"]) == ["HUMAN", "CODE"], records)
    found = client.search_datasets(experiment_ids=[experiment_id], filter_string="tags.team = 'risk'")
    holds("a dataset is found by its tag", [one.dataset_id for one in found] == [dataset.dataset_id], found)
    client.set_dataset_tags(dataset.dataset_id, {"team": "sales"})
    holds("a dataset's tag is kept", client.get_dataset(dataset.dataset_id).tags["team"] == "sales")
    # The client of 3.6 can't send these: it knows no path for them.
    if tuple(int(part) for part in mlflow.__version__.split(".")[:2]) > (3, 6):
        moved = client.add_dataset_to_experiments(dataset.dataset_id, ["0"])
        holds("a dataset joins an experiment", moved.experiment_ids == ["0", experiment_id], moved.experiment_ids)
        moved = client.remove_dataset_from_experiments(dataset.dataset_id, ["0"])
        holds("and leaves it", moved.experiment_ids == [experiment_id], moved.experiment_ids)
    client.delete_dataset(dataset.dataset_id)
    refused("a deleted dataset is gone", lambda: client.get_dataset(dataset.dataset_id), "not found")

    scorers = client._tracking_client.store
    for version in [1, 2]:
        added = scorers.register_scorer(experiment_id, "judge", json.dumps({"name": "judge", "v": version}))
        holds("a scorer has versions", added.scorer_version == version, added)
    listed = scorers.list_scorers(experiment_id)
    holds("the newest of a scorer is listed", [one.scorer_version for one in listed] == [2], listed)
    scorers.delete_scorer(experiment_id, "judge")
    holds("a deleted scorer is gone", scorers.list_scorers(experiment_id) == [])
def traces(client: MlflowClient, experiment: str) -> None:
    """Traces a function that calls another, and one that fails; finds both."""
    @mlflow.trace(span_type="TOOL")
    def rate(income: int) -> float:
        return income / 1000
    @mlflow.trace
    def decide(income: int) -> str:
        if income < 0:
            raise ValueError("no such income")
        return "yes" if rate(income) > 1 else "no"
    decide(2000)
    try:
        decide(-1)
    except ValueError:
        pass
    mlflow.flush_trace_async_logging()
    found = client.search_traces(experiment_ids=[experiment], filter_string="status = 'OK'")
    holds("a trace is found by its status", len(found) == 1, found)
    spans = {span.name: span for span in found[0].data.spans}
    holds("with all of its spans", set(spans) == {"decide", "rate"}, spans)
    holds("their inputs", spans["rate"].inputs == {"income": 2000}, spans["rate"].inputs)
    holds("and their outputs", spans["decide"].outputs == "yes", spans["decide"].outputs)
    trace_id = found[0].info.request_id
    client.set_trace_tag(trace_id, "checked", "yes")
    tagged = client.search_traces(experiment_ids=[experiment], filter_string="tags.checked = 'yes'")
    holds("a trace is found by its tag", [trace.info.request_id for trace in tagged] == [trace_id], tagged)
    failed = client.search_traces(experiment_ids=[experiment], filter_string="status = 'ERROR'")
    holds("one that failed says so", len(failed) == 1 and failed[0].data.spans[-1].events, failed)
    tools = client.search_traces(experiment_ids=[experiment], filter_string="span.type = 'TOOL'")
    holds("a trace is found by a span", [trace.info.request_id for trace in tools] == [trace_id], tools)
    mlflow.log_feedback(trace_id=trace_id, name="good", value=True, rationale="as it should be")
    mlflow.log_expectation(trace_id=trace_id, name="answer", value={"decision": "yes"})
    said = {one.name: one.value for one in client.get_trace(trace_id).info.assessments}
    holds("what is thought of it is kept", said == {"good": True, "answer": {"decision": "yes"}}, said)
    deleted = client.delete_traces(experiment, max_timestamp_millis=2**42)
    holds("traces are deleted", deleted == 2 and not client.search_traces(experiment_ids=[experiment]), deleted)


def main(uri: str) -> None:
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    client = MlflowClient()
    rows = np.arange(40, dtype=np.float64).reshape(20, 2)
    labels = (rows.sum(axis=1) > 30).astype(int)

    experiment = mlflow.set_experiment("credit")
    holds("an experiment is made where it is missing", experiment.name == "credit", experiment)
    holds("and found again", mlflow.set_experiment("credit").experiment_id == experiment.experiment_id)

    with mlflow.start_run(run_name="first") as run:
        mlflow.log_param("depth", 3)
        mlflow.log_params({"rate": 0.1, "rows": 20})
        for step in range(5):
            mlflow.log_metric("loss", 1.0 / (step + 1), step=step)
        mlflow.log_metrics({"auc": 0.8, "gini": 0.6})
        mlflow.set_tag("team", "risk")
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "notes").mkdir()
            Path(folder, "notes", "größe.txt").write_text("a note\n", encoding="utf-8")
            Path(folder, "plain.bin").write_bytes(bytes(range(256)) * 5000)
            mlflow.log_artifacts(folder, "files")
        linear = sklearn.linear_model.LogisticRegression().fit(rows, labels)
        log_model(mlflow.sklearn, linear, "credit")
    run_id = run.info.run_id

    found = client.get_run(run_id)
    holds("parameters are kept as texts", found.data.params == {"depth": "3", "rate": "0.1", "rows": "20"}, found.data)
    holds("the latest value of a metric is the last step's", found.data.metrics["loss"] == 0.2, found.data.metrics)
    history = client.get_metric_history(run_id, "loss")
    holds("a metric has its history in order", [point.step for point in history] == [0, 1, 2, 3, 4], history)
    holds("a run has its name and is finished", (found.info.run_name, found.info.status) == ("first", "FINISHED"))
    refused("a parameter keeps its value", lambda: client.log_param(run_id, "depth", 4), "Changing param values")

    listed = sorted(file.path for file in client.list_artifacts(run_id, "files"))
    holds("artifacts are listed", listed == ["files/notes", "files/plain.bin"], listed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(client.download_artifacts(run_id, "files", folder))
        holds("a text comes back", (path / "notes" / "größe.txt").read_text(encoding="utf-8") == "a note\n")
        holds("bytes come back", (path / "plain.bin").read_bytes() == bytes(range(256)) * 5000)

    with mlflow.start_run(run_name="second"):
        trees = xgboost.XGBClassifier(n_estimators=5, max_depth=2).fit(rows, labels)
        log_model(mlflow.xgboost, trees, "credit")
    versions = client.search_model_versions("name = 'credit'")
    holds("each log_model has registered a version", sorted(int(v.version) for v in versions) == [1, 2], versions)
    holds("and is READY", {version.status for version in versions} == {"READY"}, versions)

    client.set_registered_model_alias("credit", "champion", "1")
    client.set_registered_model_alias("credit", "challenger", "2")
    loaded = mlflow.pyfunc.load_model("models:/credit@champion")
    holds("a model loaded by alias predicts the same", (loaded.predict(rows) == linear.predict(rows)).all())
    loaded = mlflow.pyfunc.load_model("models:/credit/2")
    holds("a model loaded by number predicts the same", (np.asarray(loaded.predict(rows)) == trees.predict(rows)).all())
    client.set_registered_model_alias("credit", "champion", "2")
    moved = client.get_model_version_by_alias("credit", "champion")
    holds("an alias moves", str(moved.version) == "2" and "champion" in moved.aliases, moved)

    first = mlflow.search_runs(filter_string="metrics.auc > 0.5 and params.depth = '3' and tags.team LIKE 'ri%'")
    holds("runs are found by metric, parameter and tag", list(first.run_id) == [run_id], first)
    ordered = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    holds("runs are ordered", [one.info.run_name for one in ordered] == ["first", "second"], ordered)

    client.transition_model_version_stage("credit", "1", "Production")
    client.transition_model_version_stage("credit", "2", "Production", archive_existing_versions=True)
    stages = {str(version.version): version.current_stage for version in client.search_model_versions("name = 'credit'")}
    holds("a stage is taken over", stages == {"1": "Archived", "2": "Production"}, stages)
    latest = client.get_latest_versions("credit", ["Production"])
    holds("the latest of a stage is found", [str(version.version) for version in latest] == ["2"], latest)

    client.set_model_version_tag("credit", "1", "checked", "yes")
    client.set_registered_model_tag("credit", "owner", "risk")
    holds("a version's tag is kept", client.get_model_version("credit", "1").tags["checked"] == "yes")
    holds("a model's tag is kept", client.get_registered_model("credit").tags["owner"] == "risk")
    client.delete_model_version_tag("credit", "1", "checked")
    holds("and removed", "checked" not in client.get_model_version("credit", "1").tags)
    client.update_model_version("credit", "1", "the first")
    holds("a description is kept", client.get_model_version("credit", "1").description == "the first")

    copy = client.copy_model_version("models:/credit/1", "credit-copy")
    loaded = mlflow.pyfunc.load_model(f"models:/credit-copy/{copy.version}")
    holds("a copy predicts as the original", (loaded.predict(rows) == linear.predict(rows)).all())

    # The tracing of 2.22 cannot end a span with the OpenTelemetry that is installed beside it, whatever the server.
    if IS_3:
        traces(client, experiment.experiment_id)

    if hasattr(mlflow, "genai") and hasattr(mlflow.genai, "register_prompt"):
        register, load = mlflow.genai.register_prompt, mlflow.genai.load_prompt
    else:
        register, load = mlflow.register_prompt, mlflow.load_prompt
    register(name="greeting", template="Hello {{name}}")
    register(name="greeting", template="Good day, {{name}}")
    holds("a prompt has its versions", load("prompts:/greeting/1").template == "Hello {{name}}")
    holds("and is filled in", load("prompts:/greeting/2").format(name="Ada") == "Good day, Ada")
    names = {model.name for model in client.search_registered_models()}
    holds("prompts are not listed among models", names == {"credit", "credit-copy"}, names)

    if hasattr(client, "create_dataset"):
        evaluations(client, experiment.experiment_id)

    refused("a missing model is said to be missing", lambda: client.get_registered_model("absent"), "not found")
    client.delete_model_version("credit", "1")
    refused("a deleted version is gone", lambda: client.get_model_version("credit", "1"), "not found")
    client.delete_registered_model("credit")
    refused("a deleted model is gone", lambda: client.get_registered_model("credit"), "not found")
    client.delete_run(run_id)
    holds("a deleted run is deleted", client.get_run(run_id).info.lifecycle_stage == "deleted")
    client.restore_run(run_id)
    client.delete_experiment(experiment.experiment_id)
    stage = client.get_experiment(experiment.experiment_id).lifecycle_stage
    holds("a deleted experiment is deleted", stage == "deleted", stage)
    print(f"all held with mlflow {mlflow.__version__}")


if __name__ == "__main__":
    main(sys.argv[1])
