#!/usr/bin/env python3
"""Makes the models and references of this folder: small models of every format and what their own libraries answer.

usage: make.py [FOLDER]     (needs what SOURCES.md names; PYTHONPATH may point to it)

The data is synthetic and seeded: eight columns of which two are categories, with missing values, zeros, and in the test
rows categories that training never saw. cases.json.gz holds the rows and, by file, predictions, margins and SHAP values.
"""

import gzip
import json
import sys
import warnings
from pathlib import Path

import lightgbm
import numpy as np
import onnx
import onnxruntime
import xgboost
from onnxmltools import convert_lightgbm, convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType as ToolsFloat
from skl2onnx import to_onnx
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, Normalizer, OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier

warnings.filterwarnings("ignore")
FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent)
CATEGORIES = [5, 6]
rng = np.random.default_rng(20261124)


def data(rows: int) -> np.ndarray:
    cells = np.empty((rows, 8), dtype=np.float32)
    cells[:, 0] = rng.normal(size=rows)
    cells[:, 1] = rng.exponential(size=rows) * 1000
    cells[:, 2] = rng.integers(0, 10, size=rows)
    cells[:, 3] = np.where(rng.random(rows) < 0.15, np.nan, rng.normal(size=rows))
    cells[:, 4] = np.where(rng.random(rows) < 0.4, 0, rng.normal(size=rows) + 0.5)
    cells[:, 5] = rng.integers(0, 6, size=rows)
    cells[:, 6] = np.where(rng.random(rows) < 0.05, np.nan, rng.integers(0, 80, size=rows))
    cells[:, 7] = rng.normal(size=rows)
    return cells


def signal(x: np.ndarray) -> np.ndarray:
    x = np.nan_to_num(x.astype(np.float64), nan=0.3)
    effect = np.sin(np.arange(80) * 1.7)
    return (
        x[:, 0] * np.where(x[:, 5] > 2, 1.0, -0.5)
        + np.log1p(x[:, 1]) * 0.3
        - 0.2 * np.abs(x[:, 2] - 4)
        + x[:, 3]
        + 0.7 * x[:, 4]
        + effect[x[:, 6].astype(int)]
        + 0.5 * x[:, 7] * x[:, 0]
    )


X = data(2000)
score = signal(X) - np.median(signal(X))
Y2 = (score + rng.normal(size=len(X)) * 0.5 > 0).astype(int)
Y4 = np.digitize(score + rng.normal(size=len(X)) * 0.3, [-1.5, 0, 1.2])
YR = score + rng.normal(size=len(X)) * 0.2
YC = rng.poisson(np.exp(score * 0.4))
ROWS = data(48)
# What training never saw: categories, extremes, a row that misses all, negative and broken categories, negative zero.
ROWS[0] = np.nan
ROWS[1, 5:7] = [9, 200]
ROWS[2, 5:7] = [-1, -0.5]
ROWS[3, 5:7] = [2.7, 3.2]
ROWS[4] = [-50, 1e9, -3, 80, -40, 0, 0, 60]
ROWS[5, 4] = -0.0
ROWS[6, 4] = 1e-36
ROWS[7, [0, 1, 2, 4, 7]] = np.nan
ROWS[8, 5:7] = np.nan
ROWS[9, 5:7] = [1e30, -1e30]
FULL = np.nan_to_num(np.where(np.abs(ROWS) > 1e20, 1.0, ROWS), nan=0.25).astype(np.float32)
XFULL = np.nan_to_num(X, nan=0.25)

cases = {}


def numbers(array) -> list:
    return [float(value) for value in np.asarray(array, dtype=np.float64).ravel()]


def add(name: str, content: bytes, predictions, margins=None, shap=None, rows="rows", classes=None) -> None:
    with open(FOLDER / f"{name}.gz", "wb") as file, gzip.GzipFile("", "wb", 9, file, 0) as packed:
        packed.write(content)
    case = {"rows": rows, "predictions": numbers(predictions)}
    if margins is not None:
        case["margins"] = numbers(margins)
    if shap is not None:
        case["shap"] = numbers(shap)
    if classes is not None:
        case["classes"] = [str(label) for label in classes]
    cases[name] = case


def xgb(name: str, params: dict, y, rounds=10, categories=False, probabilities=None) -> None:
    types = ["c" if i in CATEGORIES else "q" for i in range(8)] if categories else None
    matrix = lambda x, y=None: xgboost.DMatrix(x, y, feature_types=types, enable_categorical=categories)
    train = matrix(np.where(np.isin(np.arange(8), CATEGORIES) & (X < 0), np.nan, X) if categories else X, y)
    if params.get("objective", "").startswith("rank"):
        train.set_group([20] * 100)
    model = xgboost.train({"nthread": 1, "seed": 1, **params}, train, rounds)
    # XGBoost refuses categories that are negative; infinite numbers of categories count as broken.
    test = ROWS.copy()
    if categories:
        test[2, 5:7] = 300
        test[9, 5:7] = 301
    where = "categories" if categories else "rows"
    test = matrix(test)
    kind = name.rsplit(".", 1)[1]
    answers = model.predict(test)
    if params["objective"] == "multi:softmax":
        margins = model.predict(test, output_margin=True)
        shifted = np.exp(margins - margins.max(axis=1, keepdims=True))
        answers = shifted / shifted.sum(axis=1, keepdims=True)
    add(
        name,
        bytes(model.save_raw("json" if kind == "json" else "ubj")),
        answers,
        model.predict(test, output_margin=True),
        model.predict(test, pred_contribs=True),
        where,
    )


XGB = {"max_depth": 4, "eta": 0.3}
xgb("xgb_binary.json", {**XGB, "objective": "binary:logistic"}, Y2)
xgb("xgb_cat.ubj", {**XGB, "objective": "binary:logistic", "max_cat_to_onehot": 8}, Y2, categories=True)
xgb("xgb_multi.ubj", {**XGB, "objective": "multi:softprob", "num_class": 4, "max_depth": 3}, Y4, 6)
xgb("xgb_softmax_cat.json", {**XGB, "objective": "multi:softmax", "num_class": 4, "max_depth": 3}, Y4, 4, True)
xgb("xgb_regression.ubj", {**XGB, "objective": "reg:squarederror", "max_depth": 7}, YR, 5)
xgb("xgb_poisson.json", {**XGB, "objective": "count:poisson"}, YC, 6)
xgb("xgb_tweedie.ubj", {**XGB, "objective": "reg:tweedie"}, YC, 6)
xgb("xgb_hinge.ubj", {**XGB, "objective": "binary:hinge"}, Y2, 4)
xgb("xgb_raw.ubj", {**XGB, "objective": "binary:logitraw", "base_score": 0.3}, Y2, 4)
xgb("xgb_rank.ubj", {**XGB, "objective": "rank:ndcg"}, Y4, 4)
xgb("xgb_forest.ubj", {**XGB, "objective": "binary:logistic", "num_parallel_tree": 4, "subsample": 0.6, "colsample_bynode": 0.7}, Y2, 3)
xgb("xgb_targets.json", {**XGB, "objective": "reg:squarederror", "max_depth": 3}, np.stack([YR, -YR + X[:, 0]], 1), 5)
xgb("xgb_dart.ubj", {**XGB, "objective": "binary:logistic", "booster": "dart", "rate_drop": 0.3}, Y2, 10)


def lgb(name: str, params: dict, y, rounds=8, categories=False) -> None:
    settings = {"verbose": -1, "num_threads": 1, "seed": 1, "deterministic": True, "num_leaves": 12, "min_data_in_leaf": 10}
    train = lightgbm.Dataset(X, y, categorical_feature=CATEGORIES if categories else [], params={**settings, **params})
    if params.get("objective") == "lambdarank":
        train.set_group([20] * 100)
    model = lightgbm.train({**settings, **params}, train, rounds)
    # Of a random forest, LightGBM gives raw scores and contributions as sums and predicts by the mean.
    trees = model.num_trees() if params.get("boosting") == "rf" else 1
    margins = model.predict(ROWS, raw_score=True) / trees
    content = model.model_to_string().encode()
    add(name, content, model.predict(ROWS), margins, model.predict(ROWS, pred_contrib=True) / trees)


lgb("lgb_binary.txt", {"objective": "binary"}, Y2)
lgb("lgb_cat.txt", {"objective": "binary", "min_data_per_group": 5, "cat_smooth": 1, "max_cat_to_onehot": 3}, Y2, categories=True)
lgb("lgb_zero.txt", {"objective": "binary", "zero_as_missing": True}, Y2)
lgb("lgb_none.txt", {"objective": "regression", "use_missing": False}, YR)
lgb("lgb_multi_cat.txt", {"objective": "multiclass", "num_class": 4, "num_leaves": 7}, Y4, 4, True)
lgb("lgb_ova.txt", {"objective": "multiclassova", "num_class": 4, "num_leaves": 7, "sigmoid": 1.5}, Y4, 4)
lgb("lgb_forest.txt", {"objective": "binary", "boosting": "rf", "bagging_fraction": 0.6, "bagging_freq": 1}, Y2, 6)
lgb("lgb_poisson.txt", {"objective": "poisson"}, YC)
lgb("lgb_sqrt.txt", {"objective": "regression", "reg_sqrt": True}, YR)
lgb("lgb_lambda.txt", {"objective": "cross_entropy_lambda"}, Y2)
lgb("lgb_rank.txt", {"objective": "lambdarank"}, Y4, 4)
lgb("lgb_dart.txt", {"objective": "binary", "boosting": "dart", "sigmoid": 0.7}, Y2)
lgb("lgb_deep.txt", {"objective": "regression_l1", "num_leaves": 400, "min_data_in_leaf": 2}, YR, 2)


# skl2onnx 1.20 hands numpy's numbers to onnx, which takes only Python's.
make_attribute = onnx.helper.make_attribute
one = lambda v: int(v) if isinstance(v, (bool, np.integer)) else v
plain = lambda value: [one(v) for v in value] if isinstance(value, list) else value
onnx.helper.make_attribute = lambda key, value, *rest, **named: make_attribute(key, plain(value), *rest, **named)


def answers(content: bytes, rows: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    feed = session.get_inputs()
    if len(feed) == 1:
        given = {feed[0].name: rows}
    else:
        given = {each.name: rows[:, [i]] for i, each in enumerate(feed)}
    result = session.run(None, given)[-1]
    if isinstance(result, list):
        result = np.array([list(each.values()) for each in result])
    return result


def binary(predictions: np.ndarray) -> np.ndarray:
    return predictions[:, 1:] if predictions.ndim == 2 and predictions.shape[1] == 2 else predictions


def sk(name: str, model, y, rows="full", shap=None, all_classes=False) -> None:
    model.fit(X if rows == "rows" else XFULL, y)
    content = to_onnx(model, XFULL[:1]).SerializeToString()
    predictions = answers(content, ROWS if rows == "rows" else FULL)
    classes = getattr(model, "classes_", None)
    predictions = predictions if all_classes else binary(predictions)
    add(f"{name}.onnx", content, predictions, None, shap and shap(model), rows, classes)


def standardised(model) -> np.ndarray:
    scaled, linear = model[0].transform(FULL), model[1]
    values = scaled * linear.coef_
    return np.hstack([values, np.tile(linear.intercept_, (len(values), 1))])


TEXTS = np.array(["no", "yes"])
sk("sk_logistic", make_pipeline(StandardScaler(), LogisticRegression()), Y2, shap=standardised)
sk("sk_logistic_multi", make_pipeline(StandardScaler(), LogisticRegression()), Y4)
sk("sk_normalizer", make_pipeline(Normalizer(), StandardScaler(), LogisticRegression()), TEXTS[Y2])
sk("sk_ridge", make_pipeline(SimpleImputer(), MinMaxScaler(), Ridge()), YR, "rows")
sk("sk_columns", make_pipeline(ColumnTransformer([("n", StandardScaler(), [0, 1, 7]), ("c", OneHotEncoder(handle_unknown="ignore"), [2])]), LogisticRegression()), Y2)
sk("sk_tree", DecisionTreeClassifier(max_depth=5), TEXTS[Y2])
sk("sk_forest", RandomForestClassifier(8, max_depth=5, random_state=1), Y2)
sk("sk_forest_multi", RandomForestClassifier(6, max_depth=5, random_state=1), Y4)
sk("sk_extra", ExtraTreesRegressor(6, max_depth=5, random_state=1), YR)
sk("sk_boosting", GradientBoostingClassifier(n_estimators=8, random_state=1), Y2)
sk("sk_boosting_multi", GradientBoostingClassifier(n_estimators=5, max_depth=2, random_state=1), Y4)
sk("sk_boosting_regression", GradientBoostingRegressor(n_estimators=6, random_state=1), YR)
sk("sk_hist", HistGradientBoostingClassifier(max_iter=6, max_leaf_nodes=10, random_state=1), Y2, "rows")
sk("sk_hist_multi", HistGradientBoostingClassifier(max_iter=4, max_leaf_nodes=6, random_state=1), Y4, "rows")
sk("sk_hist_regression", HistGradientBoostingRegressor( max_iter=5, max_leaf_nodes=10, random_state=1), YC, "rows")

tools = [("input", ToolsFloat([None, 8]))]
model = lightgbm.LGBMClassifier(n_estimators=5, num_leaves=8, verbose=-1).fit(X, Y2, categorical_feature=[5])
content = convert_lightgbm(model, initial_types=tools, zipmap=False, target_opset=15).SerializeToString()
add("lgb_tools.onnx", content, binary(answers(content, FULL)), rows="full", classes=[0, 1])
model = xgboost.XGBClassifier(n_estimators=4, max_depth=3, base_score=0.5).fit(X, Y4)
content = convert_xgboost(model, initial_types=tools, target_opset=15).SerializeToString()
add("xgb_tools.onnx", content, answers(content, ROWS), rows="rows", classes=range(4))

categories = ROWS.copy()
categories[2, 5:7] = 300
categories[9, 5:7] = 301
tables = {"rows": ROWS, "full": FULL, "categories": categories}
rows = {name: [None if np.isnan(v) else float(v) for v in table.ravel()] for name, table in tables.items()}
with open(FOLDER / "cases.json.gz", "wb") as file, gzip.GzipFile("", "wb", 9, file, 0) as packed:
    packed.write(json.dumps({"width": 8, "rows": rows, "cases": cases}).encode())
