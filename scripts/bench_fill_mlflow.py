#!/usr/bin/env python3
"""Fills the database of an `mlflow server` with what `make bench` searches, in bulk: over REST it would take hours.

usage: bench_fill_mlflow.py URI --models M --versions V --runs R       (with mlflow and its server on PYTHONPATH)

The data is that of crates/bench/src/registry/data.rs: M models of V versions each, two tags a version, the alias
`champion` on version V/2; experiment `bench` with R runs of ten metrics, five params and two tags. Prints the id of the
experiment. A database that is filled already stays as it is.
"""

import argparse

from mlflow.store.model_registry.dbmodels import models as registry
from mlflow.store.tracking.dbmodels import models as tracking
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import insert

ROWS_AT_ONCE = 10_000
BEGAN = 1_700_000_000_000
TEAMS = 20


def fill(connection, model, rows) -> None:
    """Inserts rows (dictionaries) into the table of a model."""
    waiting = []
    for row in rows:
        waiting.append(row)
        if len(waiting) == ROWS_AT_ONCE:
            connection.execute(insert(model.__table__), waiting)
            waiting = []
    if waiting:
        connection.execute(insert(model.__table__), waiting)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("uri")
    for name in ("models", "versions", "runs"):
        parser.add_argument(f"--{name}", type=int, required=True)
    wanted = parser.parse_args()

    store = SqlAlchemyStore(wanted.uri, "mlflow-artifacts:")
    existing = store.get_experiment_by_name("bench")
    if existing is not None:
        print(existing.experiment_id)
        return
    experiment = int(store.create_experiment("bench"))

    names = [f"model-{at:04}" for at in range(wanted.models)]
    versions = [(model, version) for model in range(wanted.models) for version in range(1, wanted.versions + 1)]
    runs = range(wanted.runs)
    with store.engine.begin() as connection:
        fill(connection, registry.SqlRegisteredModel,
             ({"name": name, "creation_time": BEGAN, "last_updated_time": BEGAN, "description": ""} for name in names))
        fill(connection, registry.SqlModelVersion,
             ({"name": names[model], "version": version, "creation_time": BEGAN + version,
               "last_updated_time": BEGAN + version * wanted.models + model, "description": "", "current_stage": "None",
               "source": f"s3://bench/{names[model]}/{version}", "storage_location": f"s3://bench/{names[model]}/{version}",
               "run_id": f"{version:032x}", "run_link": "", "status": "READY", "status_message": ""}
              for model, version in versions))
        fill(connection, registry.SqlModelVersionTag,
             ({"name": names[model], "version": version, "key": key, "value": value}
              for model, version in versions
              for key, value in (("team", f"team-{(model + version) % TEAMS}"), ("build", f"{model}-{version}"))))
        fill(connection, registry.SqlRegisteredModelAlias,
             ({"name": name, "alias": "champion", "version": wanted.versions // 2} for name in names))
        fill(connection, tracking.SqlRun,
             ({"run_uuid": f"{run:032x}", "name": f"run-{run}", "source_type": "UNKNOWN", "source_name": "",
               "entry_point_name": "", "user_id": "bench", "status": "RUNNING", "start_time": BEGAN + run,
               "source_version": "", "lifecycle_stage": "active", "experiment_id": experiment,
               "artifact_uri": f"mlflow-artifacts:/{experiment}/{run:032x}/artifacts"} for run in runs))
        for model in (tracking.SqlMetric, tracking.SqlLatestMetric):
            fill(connection, model,
                 ({"run_uuid": f"{run:032x}", "key": f"metric-{key}", "value": (run * 7919 + key) % 10_000 / 10_000,
                   "timestamp": BEGAN, "step": 0, "is_nan": False} for run in runs for key in range(10)))
        fill(connection, tracking.SqlParam,
             ({"run_uuid": f"{run:032x}", "key": f"param-{key}", "value": str(run % (key + 2))}
              for run in runs for key in range(5)))
        fill(connection, tracking.SqlTag,
             ({"run_uuid": f"{run:032x}", "key": key, "value": value}
              for run in runs for key, value in (("mlflow.runName", f"run-{run}"), ("team", f"team-{run % TEAMS}"))))
    print(experiment)


if __name__ == "__main__":
    main()
