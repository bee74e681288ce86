"""What the command line says of a fit: in words, and as JSON."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drojko.certificates import Certificate

__all__ = ["print_certificate", "print_fit", "screen", "summary"]

_SPREAD = 100.0  # ratio of standard deviations that deserves a remark


def screen() -> Any:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)  # labels are no markup


def print_certificate(console: Any, certificate: Certificate | None) -> None:
    if certificate is None:
        console.print("no certificate: the fit was interrupted")
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    for name, value in certificate.rows():
        table.add_row(name, value)
    console.print(table)


def print_fit(
    task: str, estimator: Any, X: Any, y: Any, options: dict[str, Any], output: Path
) -> None:
    console = screen()
    kind = task
    if task == "classification":
        classes = [str(label) for label in estimator.classes_]
        shown = ", ".join(classes[:6]) + (", ..." if len(classes) > 6 else "")
        kind = f"classification into {len(classes)} classes ({shown})"
    console.print(
        f"{X.shape[0]} rows, {X.shape[1]} features; {kind}"
        + ("" if options["task"] != "auto" else "; --task says otherwise where this is wrong"),
        soft_wrap=True,
    )
    console.print(f"{estimator.status_}: {estimator.message_}", soft_wrap=True)
    spread = X.std(numeric_only=True).replace(0.0, math.nan).dropna()
    if len(spread) and spread.max() > _SPREAD * spread.min() and not options["standardize"]:
        console.print(
            f"note: {spread.idxmax()!r} spreads {spread.max() / spread.min():.0f} times as wide as "
            f"{spread.idxmin()!r}, and the radius is in the units of the columns: consider "
            "--standardize",
            soft_wrap=True,
        )
    print_certificate(console, estimator.certificate_)
    console.print(f"saved: {output}", soft_wrap=True)


def summary(task: str, estimator: Any, X: Any, output: Path) -> dict[str, Any]:
    from dataclasses import asdict

    certificate = estimator.certificate_
    numbers = asdict(certificate) | {"gap": certificate.gap}
    numbers["relative_gap"] = certificate.relative_gap
    return {
        "task": task,
        "rows": int(X.shape[0]),
        "features": [str(name) for name in X.columns],
        "status": estimator.status_,
        "n_iter": int(estimator.n_iter_),
        "certificate": {name: _plain(value) for name, value in numbers.items()},
        "model": str(output),
    }


def _plain(value: Any) -> Any:
    """JSON has neither NaN nor infinity: null stands for both."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
