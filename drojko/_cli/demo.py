"""What ``drojko demo`` computes: a plain and a robust model of real data, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drojko._files import replacing
from drojko.certificates import Certificate

__all__ = ["Demo", "run_demo"]

RADII = (0.0, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class Demo:
    """Two models and their certificates on held-out data, one for each radius."""

    plain: Any
    robust: Any
    X: Any
    y: Any
    rows: tuple[int, int]
    plain_certificates: tuple[Certificate, ...]
    robust_certificates: tuple[Certificate, ...]

    def save(self, path: Any) -> None:
        """Write the picture: risk over the radius, and what the worst case moves."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        from drojko.displays import DisplacementDisplay, RobustnessCurveDisplay

        # A figure of its own: no window, and the user's choice of backend is left alone.
        figure = Figure(figsize=(12, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        for model, name in ((self.plain, "plain"), (self.robust, "robust")):
            RobustnessCurveDisplay.from_estimator(
                model, self.X, self.y, radii=RADII, name=name, ax=left
            )
        left.set_title("held-out risk under the worst case", loc="left")
        DisplacementDisplay.from_estimator(self.robust, ax=right, max_features=8)
        kind = Path(path).suffix.lower().lstrip(".") or "png"
        with replacing(path) as file:
            figure.savefig(file, dpi=130, format=kind)


def run_demo(radius: float, random_state: int = 0) -> Demo:
    """Fit on two thirds of the breast cancer data, certify on the rest; features standardised.

    The plain model is the same estimator at radius 0, with the L2 penalty of scikit-learn's
    `LogisticRegression` at its default C=1: without it the classes can be separated and no
    minimum exists.
    """
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    from drojko.ambiguity import Wasserstein
    from drojko.estimators import DROClassifier

    data: Any = load_breast_cancer(as_frame=True)
    split = train_test_split(
        data.data,
        data.target_names[data.target],
        test_size=1 / 3,
        stratify=data.target,
        random_state=random_state,
    )
    train, test, y_train, y_test = split
    scaler = StandardScaler().set_output(transform="pandas").fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    plain = DROClassifier(Wasserstein(radius=0.0), alpha=1 / len(train), reference="empirical").fit(
        train, y_train
    )
    robust = DROClassifier(Wasserstein(radius=radius), random_state=random_state)
    robust.fit(train, y_train)
    found = [
        tuple(model.robust_certificate(test, y_test, Wasserstein(radius=r)) for r in RADII)
        for model in (plain, robust)
    ]
    return Demo(plain, robust, test, y_test, (len(train), len(test)), *found)
