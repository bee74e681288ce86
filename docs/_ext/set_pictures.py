"""One picture for each ambiguity set: the same rows and model, the worst case of the set."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from drojko import DROClassifier

COLOURS = np.array(["#1f77b4", "#d95f02"])


def rows(seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two overlapping classes in the plane, (60, 2), and a group of each row."""
    rng = np.random.default_rng(seed)
    y = np.repeat([0, 1], 30)
    X = rng.normal(size=(60, 2)) * 0.7 + np.where(y, 1.0, -1.0)[:, None] * [0.9, 0.4]
    return X, y, np.where(X[:, 1] > 0.3, "upper", "lower")


def picture(ambiguity: Any, *, groups: bool = False, codes: bool = False) -> Figure:
    """Draw rows and worst case: arrows where rows move, areas where masses change."""
    import matplotlib.pyplot as plt

    X, y, names = rows()
    if codes:  # whole numbers as cells
        X = np.column_stack([X[:, 0], np.round(X[:, 1])])
    given = {"groups": names} if groups else {}
    clf = DROClassifier(ambiguity, reference="empirical", alpha=1e-2, random_state=0)
    clf.fit(X, y, **given)
    figure, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    colours = COLOURS[y]
    ax.scatter(*X.T, s=26, facecolors="none", edgecolors=colours, linewidths=1.2, label="data")
    if ambiguity.moves:
        worst = clf.worst_case_
        if hasattr(worst, "transport") and getattr(ambiguity, "order", 2) == 2:
            Z = worst.transport(X, y)
            ax.quiver(
                *X.T, *(Z - X).T, color="0.6", angles="xy", scale_units="xy", scale=1, width=0.002
            )
            ax.scatter(*Z.T, s=26, c=colours, label="worst case")
        else:
            Z, labels = worst.sample(240, random_state=0)
            ax.scatter(*Z.T, s=9, c=COLOURS[labels], alpha=0.5, label="draws of the worst case")
    else:
        margin = np.where(y, 1, -1) * clf.decision_function(X)
        bound = ambiguity.bind(X, y, np.full(60, 1 / 60), names if groups else None)
        ratio = bound.dual(np.logaddexp(0, -margin)).ratio
        ax.scatter(*X.T, s=26 * ratio, c=colours, label="worst case: area is mass")
    (a, b), c = clf.coef_[0], clf.intercept_[0]
    low, high = ax.get_ylim()
    edge = np.array([low, high])
    ax.plot(-(b * edge + c) / a, edge, color="0.3", lw=1, ls="--", label="boundary")
    ax.set_ylim(low, high)
    ax.set_title(f"{ambiguity!r}", loc="left", fontsize=10)
    figure.legend(frameon=False, fontsize=9, loc="outside lower left", ncols=3)
    return figure
