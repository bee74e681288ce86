"""Twelve everyday ways to make numbers of a table, each a table and the steps before the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    StandardScaler,
    TargetEncoder,
)

__all__ = ["NUMBERS", "PIPELINES", "flights"]

NUMBERS, TEXT, COUNTS = ["delay", "miles"], ["carrier", "origin"], ["month", "weekend"]


def flights(n: int = 120, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """A table as people have them; labels of text, and a number."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "delay": np.round(rng.gamma(2.0, 12.0, n) - 8.0, 1),
            "miles": rng.integers(90, 2600, n),
            "carrier": rng.choice(["9E", "AA", "UA", "WN"], n, p=[0.1, 0.3, 0.4, 0.2]),
            "origin": rng.choice(["EWR", "JFK", "LGA"], n),
            "month": rng.integers(1, 13, n),
            "weekend": rng.random(n) < 0.3,
            "date": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 365, n), "D"),
        }
    )
    score = 0.07 * table.delay - 0.0004 * table.miles + 0.9 * (table.carrier == "9E")
    score += 0.06 * table.month + 0.4 * table.weekend + 0.6 * rng.standard_normal(n) - 1.2
    return table, np.where(score > 0, "late", "on time"), 10.0 * score.to_numpy()


def _gaps(table: pd.DataFrame) -> pd.DataFrame:
    found = table[[*NUMBERS, *COUNTS]].astype(float)
    return found.mask(np.random.default_rng(1).random(found.shape) < 0.1)


def date_parts(table: pd.DataFrame) -> pd.DataFrame:
    date = table["date"].dt
    return pd.DataFrame(
        {"month": date.month, "weekday": date.weekday, "delay": table["delay"]}, index=table.index
    )


def _mixed(encoder: Any) -> Any:
    return make_column_transformer(
        (encoder, TEXT), (StandardScaler(), NUMBERS), remainder="passthrough"
    )


def _steps(*steps: Callable[[], Any]) -> Callable[[], list[Any]]:
    return lambda: [step() for step in steps]


def _columns(*names: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table[list(names)]


_PLAIN = _columns(*NUMBERS, *COUNTS[:1])
_TABLE = _columns(*NUMBERS, *TEXT, *COUNTS)

#: Name: the table of flights as that pipeline takes it, and new steps.
PIPELINES: dict[str, tuple[Callable[[pd.DataFrame], Any], Callable[[], list[Any]]]] = {
    "numbers": (_PLAIN, _steps()),
    "one-hot": (
        _TABLE,
        _steps(lambda: _mixed(OneHotEncoder(handle_unknown="ignore", sparse_output=False))),
    ),
    "ordinal": (_TABLE, _steps(lambda: _mixed(OrdinalEncoder()))),
    "target": (_TABLE, _steps(lambda: _mixed(TargetEncoder(cv=3, random_state=0)))),
    "imputed": (_gaps, _steps(SimpleImputer, StandardScaler)),
    "categories": (lambda table: _TABLE(table).astype(dict.fromkeys(TEXT, "category")), _steps()),
    "counts": (_columns(*COUNTS, "miles"), _steps()),
    "log": (
        lambda table: _PLAIN(table)[["miles", "month"]],
        _steps(lambda: FunctionTransformer(np.log1p), StandardScaler),
    ),
    "bins": (
        _PLAIN,
        _steps(
            lambda: KBinsDiscretizer(
                4, encode="onehot-dense", quantile_method="averaged_inverted_cdf"
            )
        ),
    ),
    "polynomial": (
        _PLAIN,
        _steps(StandardScaler, lambda: PolynomialFeatures(2, include_bias=False)),
    ),
    "selected": (_PLAIN, _steps(StandardScaler, lambda: SelectKBest(k=2))),
    "dates": (
        _columns("date", "delay"),
        _steps(lambda: FunctionTransformer(date_parts), StandardScaler),
    ),
}


def build(name: str, model: Any) -> Any:
    steps = PIPELINES[name][1]()
    return make_pipeline(*steps, model) if steps else model
