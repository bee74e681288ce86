"""
=======================================
Diffusing, swarming, and being observed
=======================================

One engine, four flows: the porous-medium equation, the aggregation equation, Bayesian logistic
regression, and a diffusion of which only a few noisy observations are known.
"""

import math
import os

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import make_moons

from drojko.flows import ICNNScheme
from drojko.flows.tasks import aggregation, bayesian_logistic, filter_diffusion, porous_medium
from drojko.measures import Gaussian, Measure

short = bool(os.environ.get("DROJKO_EXAMPLES_SHORT"))
figure = plt.figure(figsize=(12, 7.5), layout="constrained")
panels = figure.subplots(2, 3)

# sphinx_gallery_defer_figures

# %%
# A porous medium
# ---------------
#
# The solution that starts as a Barenblatt profile stays one: du/dt is the Laplacian of u^2. The
# scheme's maps know nothing of it. A measure of one's own says how to draw and what its density is.


class Barenblatt(Measure):
    """Density (C - x^2 / 12 s^2) / s where that is positive, C = 1 / 12 of the radius squared."""

    radius = 9.0 ** (1 / 3)  # for unit mass

    def __init__(self, scale=1.0):
        self.scale = scale

    def __sklearn_is_fitted__(self):
        return True

    @property
    def dim(self):
        return 1

    def log_prob(self, x):
        inside = self.radius**2 - (torch.as_tensor(x)[:, 0] / self.scale).square()
        return (inside.clamp_min(0.0) / 12.0).log() - np.log(self.scale)

    def points(self, n, generator=None):
        p = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        # The quantile function of a parabola, by the roots of its cubic.
        x = 2.0 * torch.cos((torch.acos(1.0 - 2.0 * p) + 4.0 * np.pi) / 3.0)
        return self.scale * self.radius * x.unsqueeze(1), torch.full((n,), 1.0 / n).double()


start = Barenblatt()
result = porous_medium(start, 0.1, 20, random_state=0)
print(result)
axis = np.linspace(-3.2, 3.2, 301)
panel = panels[0, 0]
for k, colour in ((0, "tab:blue"), (10, "tab:green"), (20, "tab:orange")):
    t = 1.0 + 0.1 * k
    step = result.measures[k]
    x = axis[:, None]
    panel.plot(axis, step.log_prob(x).exp(), color=colour, label=f"t = {t:g}")
    exact = Barenblatt(t ** (1 / 3))
    panel.plot(axis, exact.log_prob(x).exp(), "k:", linewidth=1.0)
panel.set(title="Porous medium (dotted: exact)", xlabel="x", ylabel="density")
panel.legend()

# sphinx_gallery_defer_figures

# %%
# A swarm
# -------
#
# Particles attract each other from afar and repel each other when they are near; the energy
# is that of pairs.


def kernel(x):
    squares = x.square().sum(1)
    return 0.5 * squares + 4.0 * torch.exp(-0.5 * squares)


scheme = ICNNScheme(
    hidden=(16,) if short else (32, 32), n_particles=300 if short else 1000,
    iterations=32 if short else 150,
)  # fmt: skip
swarm = aggregation(
    kernel, Gaussian([0.0, 0.0], [[4.0, 0.0], [0.0, 0.5]]), 0.2, 3 if short else 12,
    scheme=scheme, random_state=0,
)  # fmt: skip
panel = panels[0, 1]
for k, colour in ((0, "lightgrey"), (swarm.n_steps, "tab:blue")):
    step = swarm.measures[k]
    x = step.sample(600, torch.Generator().manual_seed(0)) if k == 0 else step.particles[:600]
    label = f"t = {0.2 * k:.1f}"
    panel.plot(x[:, 0], x[:, 1], ".", color=colour, markersize=3, label=label)
panel.set(title="Aggregation", aspect="equal")
panel.legend(loc="upper right")
panel = panels[0, 2]
panel.plot(swarm.history["time"], swarm.history["energy"], "o-", label="aggregation")
panel.set(xlabel="time", ylabel="energy of pairs", title="Energy of the swarm")

# sphinx_gallery_defer_figures

# %%
# A posterior
# -----------
#
# Weights of a logistic regression and the precision of their prior, as the end of a flow.

X, y = make_moons(120, noise=0.25, random_state=0)
features = np.column_stack([X, X**2, X[:, 0] * X[:, 1]])
features = (features - features.mean(0)) / features.std(0)
posterior = bayesian_logistic(features, y, random_state=0)
print(f"accuracy {posterior.accuracy(features, y):.3f}")
panel = panels[1, 0]
b = posterior.coefficients
panel.plot(b[:500, 0], b[:500, 1], ".", markersize=3)
panel.set(title="Posterior of two weights", xlabel="first", ylabel="second")

# sphinx_gallery_defer_figures

# %%
# A filter
# --------
#
# The state lives in a bumpy well; every half unit of time it is seen with noise of variance 1.
# Between observations its law follows the Fokker-Planck equation, at an observation Bayes' rule
# multiplies the density. Nothing is smoothed.


def potential(z):
    return torch.sin(2.0 * math.pi * z[:, 0]) / math.pi + 0.25 * z[:, 0] ** 2


rng = np.random.default_rng(3)
state, path, seen = rng.normal(), [], []
times = np.arange(1, 4 if short else 7) * 0.5
for k in range(1, round(times[-1] / 0.005) + 1):
    slope = 2.0 * math.cos(2.0 * math.pi * state) + 0.5 * state
    state += -0.005 * slope + math.sqrt(0.01) * rng.normal()
    path.append(state)
    if k % 100 == 0:
        seen.append(state + rng.normal())
found = filter_diffusion(
    potential, Gaussian([0.0], [[1.0]]), times, seen, step_size=0.25 if short else 0.05,
    random_state=0,
)  # fmt: skip
print(f"log evidence of the observations: {found.log_evidence:.3f}")
axis = np.linspace(-4, 4, 200)
shown, at, before = [np.asarray(Gaussian([0.0], [[1.0]]).log_prob(axis[:, None]).exp())], [0.0], 0.0
for flow, posterior_law, t in zip(found.flows, found.measures, times, strict=True):
    for step, moved in zip(flow.measures[1:], flow.history["time"], strict=True):
        shown.append(step.log_prob(axis[:, None]).exp().numpy())
        at.append(before + moved)
    shown.append(posterior_law.log_prob(axis[:, None]).exp().numpy())
    at.append(t + 1e-6)
    before = t
panel = panels[1, 1]
panel.pcolormesh(at, axis, np.array(shown).T, cmap="Blues", shading="nearest")
panel.plot(0.005 * np.arange(1, len(path) + 1), path, color="tab:orange", linewidth=0.8)
panel.plot(times, seen, "k*", label="observed")
panel.set(title="Filter (orange: the state)", xlabel="time", ylabel="x", ylim=(-4, 4))
panel.legend(loc="lower left")
panel = panels[1, 2]
panel.plot(axis, found.predicted[-1].log_prob(axis[:, None]).exp(), label="before")
panel.plot(axis, found.measures[-1].log_prob(axis[:, None]).exp(), label="after")
panel.axvline(seen[-1], color="black", linestyle=":", linewidth=1.0)
panel.set(title="The last observation", xlabel="x", ylabel="density")
panel.legend()
figure.savefig("flow_equations.png", dpi=100)
