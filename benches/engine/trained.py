"""scikit-learn's models, trained on the data in its package and converted by skl2onnx.

    trained.py      writes the small ones, with rows of their data, to tests/onnx/tabular/

Seeds are fixed. What a model takes is a row of its own data; probabilities come as a tensor
(no ZipMap, which gives a sequence of maps that no server can pass on). The written ones are for
tests/onnx/model_tests.py, which so needs no scikit-learn; then it must ask ONNX Runtime anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import numpy_helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
from sklearn import datasets
from sklearn.base import is_classifier
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

OPSET = {"": 18, "ai.onnx.ml": 3}
ROW = 42
EVERY = 19  # of the rows written: eight of iris, from all its classes
SMALL_BYTES = 100_000
TESTED = Path(__file__).resolve().parent.parent.parent / "tests/onnx/tabular"


@dataclass(frozen=True)
class Recipe:
    name: str
    data: str  # of DATA
    model: Callable


def train(recipe):
    """The bytes of its .onnx."""
    columns, target = DATA[recipe.data]()
    model = recipe.model().fit(table(columns), target)
    types = [(name, TYPES[kind]([None, values.shape[1]])) for name, (kind, values) in columns.items()]
    options = {"zipmap": False} if is_classifier(model) else None
    converted = to_onnx(model, initial_types=types, options=options, target_opset=OPSET)
    return converted.SerializeToString()


def row(recipe):
    return rows(recipe, slice(ROW, ROW + 1))


def rows(recipe, which):
    columns, _ = DATA[recipe.data]()
    return [np.ascontiguousarray(values[which]) for _, values in columns.values()]


def write_small():
    for recipe in RECIPES:
        model = train(recipe)
        if len(model) > SMALL_BYTES:
            continue
        folder = TESTED / recipe.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").write_bytes(model)
        for index, array in enumerate(rows(recipe, slice(None, None, EVERY))):
            (folder / f"{index}.pb").write_bytes(numpy_helper.from_array(array).SerializeToString())


def table(columns):
    """One array as scikit-learn takes it; of objects where the columns differ in kind."""
    arrays = [values for _, values in columns.values()]
    return arrays[0] if len(arrays) == 1 else np.hstack([array.astype(object) for array in arrays])


TYPES = {"float": FloatTensorType, "int": Int64TensorType, "string": StringTensorType}


def plain(loaded):
    return {"input": ("float", loaded.data.astype(np.float32))}, loaded.target


def iris():
    return plain(datasets.load_iris())


def cancer():
    return plain(datasets.load_breast_cancer())


def diabetes():
    return plain(datasets.load_diabetes())


def survey():
    """Breast cancer's numbers, some of them missing, and a column of categories."""
    loaded = datasets.load_breast_cancer()
    numbers = loaded.data[:, 1:].astype(np.float32)
    numbers[np.random.default_rng(0).random(numbers.shape) < 0.03] = np.nan
    sizes = np.digitize(loaded.data[:, :1], np.quantile(loaded.data[:, 0], [0.25, 0.5, 0.75]))
    return numbers, sizes, loaded.target


def survey_strings():
    numbers, sizes, target = survey()
    names = np.array(["small", "medium", "large", "huge"], object)[sizes]
    return {"numbers": ("float", numbers), "size": ("string", names)}, target


def survey_numbers():
    numbers, sizes, target = survey()
    return {"numbers": ("float", numbers), "size": ("int", sizes.astype(np.int64))}, target


DATA = {
    "iris": iris,
    "cancer": cancer,
    "diabetes": diabetes,
    "strings": survey_strings,
    "numbers": survey_numbers,
}


def pipeline():
    numeric = make_pipeline(SimpleImputer(strategy="mean"), StandardScaler())
    columns = ColumnTransformer(
        [("numbers", numeric, slice(0, 29)), ("size", OneHotEncoder(handle_unknown="ignore"), [29])]
    )
    return make_pipeline(columns, LogisticRegression(max_iter=1000))


def scaled(model):
    return make_pipeline(StandardScaler(), model)


RECIPES = [
    Recipe("skl-linear", "diabetes", LinearRegression),
    Recipe("skl-logistic", "iris", lambda: LogisticRegression(max_iter=1000)),
    Recipe("skl-logistic-scaled", "cancer", lambda: scaled(LogisticRegression(max_iter=1000))),
    Recipe("skl-naive-bayes", "iris", GaussianNB),
    Recipe("skl-mlp", "cancer", lambda: scaled(MLPClassifier((64, 32), max_iter=500, random_state=0))),
    Recipe("skl-knn", "iris", lambda: KNeighborsClassifier(5)),
    Recipe("skl-tree", "iris", lambda: DecisionTreeClassifier(random_state=0)),
    Recipe("skl-forest", "iris", lambda: RandomForestClassifier(100, random_state=0)),
    Recipe("skl-forest-two-class", "cancer", lambda: RandomForestClassifier(100, random_state=0)),
    Recipe("skl-forest-regressor", "diabetes", lambda: RandomForestRegressor(100, random_state=0)),
    Recipe("skl-boosting", "iris", lambda: GradientBoostingClassifier(random_state=0)),
    Recipe("skl-boosting-two-class", "cancer", lambda: GradientBoostingClassifier(random_state=0)),
    Recipe("skl-boosting-regressor", "diabetes", lambda: GradientBoostingRegressor(random_state=0)),
    Recipe("skl-isolation-forest", "iris", lambda: IsolationForest(random_state=0)),
    Recipe("skl-svm", "iris", lambda: scaled(SVC())),
    Recipe("skl-pipeline-strings", "strings", pipeline),
    Recipe("skl-pipeline", "numbers", pipeline),
]


if __name__ == "__main__":
    write_small()
