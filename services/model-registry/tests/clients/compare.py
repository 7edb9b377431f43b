#!/usr/bin/env python3
"""Compares what two MLflow servers answer to the ordinary `mlflow` client: a source, and the registry it was imported into.

usage: compare.py SOURCE REGISTRY [--partial | --prompts]     (with the client's packages on PYTHONPATH)

With --partial the import was cut off: what is in the registry must be as in the source, whole, but not all must be there.
With --prompts they are loaded too, which writes a tag into the registry.
Places of files differ by design; what is read from them must not. Ends at the first difference.
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_HTTP_REQUEST_MAX_RETRIES="2", GIT_PYTHON_REFRESH="quiet")

import mlflow  # noqa: E402
import numpy as np  # noqa: E402
from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import ViewType  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

IS_3 = mlflow.__version__.startswith("3.")
ROWS = np.arange(40, dtype=np.float64).reshape(20, 2)
# Their files cannot be read through the source.
UNREACHABLE = {"remote", "elsewhere"}
compared = {"runs": 0, "values": 0, "files": 0, "logged models": 0, "versions": 0, "predictions": 0}


def same(what: str, there: object, here: object) -> None:
    # Texts, so that NaN is NaN.
    if repr(there) != repr(here):
        sys.exit(f"with mlflow {mlflow.__version__} {what} differs\n  there: {there!r}\n  here:  {here!r}")


def history(client: MlflowClient, run: str, key: str) -> list:
    values = [(metric.timestamp, metric.step, metric.value) for metric in client.get_metric_history(run, key)]
    return sorted(values, key=repr)


def files(client: MlflowClient, run: str) -> dict[str, bytes]:
    mlflow.set_tracking_uri(client.tracking_uri)
    with tempfile.TemporaryDirectory() as folder:
        if client.list_artifacts(run):
            client.download_artifacts(run, "", folder)
        return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def experiments(client: MlflowClient) -> dict:
    return {one.name: one for one in client.search_experiments(view_type=ViewType.ALL)}


def run_parts(run) -> dict:
    info = run.info
    inputs = run.inputs.dataset_inputs if run.inputs else []
    models = [] if not IS_3 else [model.model_id for model in getattr(run.inputs, "model_inputs", None) or []]
    outputs = [] if not IS_3 else [(model.model_id, model.step) for model in getattr(run.outputs, "model_outputs", None) or []]
    return {
        "info": (info.run_id, info.run_name, info.user_id, info.status, info.start_time, info.end_time, info.lifecycle_stage),
        "params": sorted(run.data.params.items()),
        "tags": sorted(run.data.tags.items()),
        "metrics": sorted((m.key, m.value, m.timestamp, m.step) for m in run.data._metric_objs),
        "datasets": [(sorted((tag.key, tag.value) for tag in one.tags), sorted(one.dataset.to_dictionary().items())) for one in inputs],
        "models": (sorted(models), sorted(outputs)),
    }


def logged_models(client: MlflowClient, experiment: str) -> dict:
    def parts(model) -> tuple:
        metrics = sorted((m.run_id, m.key, m.value, m.timestamp, m.step, m.dataset_name) for m in model.metrics or [])
        status = str(model.status)
        times = (model.creation_timestamp, model.last_updated_timestamp)
        return (model.name, status, times, model.model_type, model.source_run_id, sorted((model.params or {}).items()),
                sorted((model.tags or {}).items()), metrics)  # fmt: skip

    return {model.model_id: parts(model) for model in client.search_logged_models(experiment_ids=[experiment])}


def model_parts(model) -> dict:
    return {
        "name": model.name,
        "times": (model.creation_timestamp, model.last_updated_timestamp),
        "description": model.description or "",
        "tags": sorted(model.tags.items()),
        "aliases": sorted((alias, str(version)) for alias, version in model.aliases.items()),
    }


def version_parts(version) -> dict:
    return {
        "number": str(version.version),
        "times": (version.creation_timestamp, version.last_updated_timestamp),
        "description": version.description or "",
        "run": version.run_id or "",
        "tags": sorted(version.tags.items()),
        "stage": version.current_stage,
        "status": version.status,
        "model": getattr(version, "model_id", None) or "",
    }


def versions(client: MlflowClient, name: str) -> dict:
    prompts = "tags.`mlflow.prompt.is_prompt` = 'true'"
    found = [*client.search_model_versions(f"name = '{name}'"), *client.search_model_versions(f"name = '{name}' AND {prompts}")]
    return {str(version.version): version_parts(version) for version in found}


def predictions(uri: str, name: str, version: str) -> list:
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return np.asarray(mlflow.pyfunc.load_model(f"models:/{name}/{version}").predict(ROWS)).tolist()


def main(source: str, registry: str, is_partial: bool, loads_prompts: bool) -> None:
    there, here = MlflowClient(source, source), MlflowClient(registry, registry)
    all_there, all_here = experiments(there), experiments(here)
    if not is_partial:
        same("the list of experiments", sorted(all_there), sorted(all_here))
        # Newest first is the order of the client; those that are of one millisecond have none.
        found = [there.search_runs([all_there["credit"].experiment_id], "metrics.loss < 1 and params.depth = '3'"),
                 here.search_runs([all_here["credit"].experiment_id], "metrics.loss < 1 and params.depth = '3'")]  # fmt: skip
        same("a search", *[[run.info.run_id for run in runs] for runs in found])
        same("a search finds something", 1, len(found[0]))
    for name, mine in all_here.items():
        if name not in all_there or (is_partial and name == "Default"):
            continue
        other = all_there[name]
        parts = [(e.creation_time, e.last_update_time, e.lifecycle_stage, sorted(e.tags.items())) for e in (other, mine)]
        same(f"experiment {name}", *parts)
        runs_there, runs_here = [
            {run.info.run_id: run for run in client.search_runs([one.experiment_id], run_view_type=ViewType.ALL)}
            for client, one in ((there, other), (here, mine))
        ]
        if not is_partial:
            same(f"the runs of {name}", sorted(runs_there), sorted(runs_here))
        for run_id in runs_here:
            same(f"run {run_id}", run_parts(there.get_run(run_id)), run_parts(here.get_run(run_id)))
            compared["runs"] += 1
            for key in runs_there[run_id].data.metrics:
                values = history(there, run_id, key)
                same(f"the values of {key} of run {run_id}", values, history(here, run_id, key))
                compared["values"] += len(values)
            if name not in UNREACHABLE:
                found = files(there, run_id)
                same(f"the files of run {run_id}", found, files(here, run_id))
                compared["files"] += len(found)
        if IS_3:
            models_there, models_here = logged_models(there, other.experiment_id), logged_models(here, mine.experiment_id)
            models_there = {id: parts for id, parts in models_there.items() if id in models_here or not is_partial}
            same(f"the logged models of {name}", sorted(models_there.items()), sorted(models_here.items()))
            compared["logged models"] += len(models_here)

    def models(client: MlflowClient) -> dict:
        prompts = client.search_registered_models("tags.`mlflow.prompt.is_prompt` = 'true'")
        return {model.name: model for model in [*client.search_registered_models(), *prompts]}

    registered_there, registered_here = models(there), models(here)

    if not is_partial:
        same("the list of registered models", list(registered_there), list(registered_here))
    for name in registered_here:
        versions_there, versions_here = versions(there, name), versions(here, name)
        if is_partial:
            versions_there = {number: version for number, version in versions_there.items() if number in versions_here}
        else:
            same(f"model {name}", model_parts(registered_there[name]), model_parts(registered_here[name]))
        same(f"the versions of {name}", sorted(versions_there.items()), sorted(versions_here.items()))
        for number in versions_here:
            compared["versions"] += 1
            if name not in UNREACHABLE and name != "greeting":
                same(f"predictions of {name}/{number}", predictions(source, name, number), predictions(registry, name, number))
                compared["predictions"] += 1
    if not is_partial:
        same("the gap of a deleted version", ["1", "3"], sorted(versions(here, "credit")))
        try:
            here.get_model_version("credit", "2")
        except MlflowException:
            pass
        else:
            sys.exit("a deleted version is there")
        same("a version by alias", "3", str(here.get_model_version_by_alias("credit", "challenger").version))
    if loads_prompts:
        mlflow.set_tracking_uri(registry)
        mlflow.set_registry_uri(registry)
        genai = getattr(mlflow, "genai", None)
        load = genai.load_prompt if hasattr(genai, "load_prompt") else mlflow.load_prompt
        same("a prompt", "Good day, Ada", load("prompts:/greeting@live").format(name="Ada"))
    print(f"all equal with mlflow {mlflow.__version__}: {compared}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], "--partial" in sys.argv[3:], "--prompts" in sys.argv[3:])
