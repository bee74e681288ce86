"""From options to models: ambiguity sets by name, and pipelines for tables with text and gaps."""

from __future__ import annotations

from typing import Any

from drojko.exceptions import InvalidDataError

__all__ = ["SETS", "encoded", "make_set"]

#: Names of sets, and of their classes.
SETS = {
    "wasserstein": "Wasserstein",
    "kl": "KL",
    "chi-square": "ChiSquare",
    "tv": "TotalVariation",
    "cvar": "CVaR",
}
#: Values of a text column that can be told apart one by one.
MOST_CATEGORIES = 1_000
_DATE = r"^\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}"


def make_set(kind: str, size: float | None, penalty: float | None = None, **moves: Any) -> Any:
    """The set of a name with a size or a penalty; ``moves`` say which columns move, and how."""
    from drojko import ambiguity

    found = getattr(ambiguity, SETS[kind])
    moves = {name: value for name, value in moves.items() if value}
    if kind != "wasserstein" and moves:
        options = ", ".join("--categorical" if "cat" in n else f"--{n}" for n in moves)
        raise InvalidDataError(f"{options}: under --set {kind} no column moves; leave it out")
    if kind == "cvar":
        if penalty is not None:
            raise InvalidDataError("--set cvar has no --penalty: --radius is its share of rows")
        return found(alpha=size)
    return found(radius=size, penalty=penalty, **moves)


def encoded(X: Any, standardize: bool) -> tuple[Any, list[str]]:
    """Steps that make numbers of a table with text, booleans and gaps, and what they do in words.

    Raises `InvalidDataError` for dates, and for text with too many values to be categories.
    """
    import pandas as pd
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    kinds: dict[str, list[str]] = {"text": [], "gaps": [], "numbers": [], "flags": []}
    for name in X.columns:
        column = X[name]
        if column.isna().all():
            raise InvalidDataError(f"column {name!r} is empty: leave it out with --drop {name!r}")
        if pd.api.types.is_bool_dtype(column):
            kinds["flags"].append(name)
        elif pd.api.types.is_numeric_dtype(column):
            kinds["gaps" if column.isna().any() else "numbers"].append(name)
        else:
            _check_text(name, column)
            kinds["text"].append(name)
    scale = [StandardScaler()] if standardize else []
    parts: list[Any] = []
    if kinds["text"]:
        encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
        parts.append((encoder, kinds["text"]))
    if kinds["gaps"]:
        steps = [SimpleImputer(strategy="median"), *scale]
        parts.append((make_pipeline(*steps), kinds["gaps"]))
    if kinds["numbers"]:
        parts.append((scale[0] if scale else "passthrough", kinds["numbers"]))
    if kinds["flags"]:
        parts.append(("passthrough", kinds["flags"]))
    words = {"text": "one column a category", "gaps": "gaps filled with the median"}
    said = [f"{', '.join(kinds[k])}: {what}" for k, what in words.items() if kinds[k]]
    made = make_column_transformer(*parts, verbose_feature_names_out=False)
    return made.set_output(transform="pandas"), said


def _check_text(name: str, column: Any) -> None:
    import pandas as pd

    known = column.dropna()
    dates = pd.api.types.is_datetime64_any_dtype(column)
    if dates or known.astype(str).str.match(_DATE).all():
        raise InvalidDataError(
            f"column {name!r} holds dates such as {str(known.iloc[0])!r}: put its month, weekday "
            f"or days since some date in its place, or leave it out with --drop {name!r}"
        )
    if known.nunique() > MOST_CATEGORIES:
        raise InvalidDataError(
            f"column {name!r} holds {known.nunique()} different texts in {len(column)} rows, too "
            f"many to be categories: leave it out with --drop {name!r}, or group them"
        )
