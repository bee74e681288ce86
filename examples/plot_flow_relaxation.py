"""
===========================
A law relaxes to its target
===========================

The Fokker-Planck equation is a gradient flow: the law of a diffusion descends the Kullback-Leibler
divergence from its equilibrium, in the geometry of optimal transport. JKO steps follow it with
maps, so that at every time there are particles and their exact density.
"""

import math
import os

import matplotlib.pyplot as plt
import numpy as np
import torch

from drojko.flows import EnvelopeScheme, JKOFlow
from drojko.flows.functionals import KLDivergence
from drojko.flows.tasks import sample_density
from drojko.measures import Gaussian

short = bool(os.environ.get("DROJKO_EXAMPLES_SHORT"))

# %%
# A target with three modes
# -------------------------
#
# Its density is known, up to a factor in general; here the factor is known too, so that the
# divergence can be read off in nats.

centres = torch.tensor([[-2.5, -1.5], [2.5, -1.0], [0.0, 2.5]], dtype=torch.float64)


def log_prob(z):
    near = -0.5 * torch.cdist(z, centres).square() / 0.5
    return torch.logsumexp(near, 1) - math.log(3.0 * math.pi)


steps = [0.1, 0.2, 0.3, 0.4] if short else [0.05, 0.05, 0.1, 0.1, 0.15, 0.15, 0.2, 0.2, 0.3, 0.3]
scheme = EnvelopeScheme(
    components=8 if short else 24,
    n_particles=1000 if short else 6000,
    iterations=60 if short else 400,
    batch_size=128 if short else 256,
)
start = Gaussian([0.0, 0.0], 4.0 * np.eye(2))
flow = JKOFlow(KLDivergence(log_prob), scheme, step_size=steps)
result = flow.run(start, len(steps), random_state=0)
print(result)

# %%
# Particles, densities, energy
# ----------------------------
#
# Densities at grid points are found by inverting the maps. The energy falls, and what a step costs
# in transport, the movement, is at most what it gains.

figure = plt.figure(figsize=(11, 7.5), layout="constrained")
panels = figure.subplots(2, 3)
axis = np.linspace(-5, 5, 40 if short else 120)
grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
times = np.concatenate([[0.0], result.history["time"]])
last = len(steps)
for panel, k in zip(panels.flat[:4], (0, last // 3, 2 * last // 3, last), strict=True):
    measure = result.measures[k]
    density = measure.log_prob(grid).exp().numpy().reshape(len(axis), -1)
    panel.contourf(axis, axis, density, levels=14, cmap="Blues")
    x = measure.sample(300, torch.Generator().manual_seed(1))
    panel.plot(x[:, 0], x[:, 1], ".", color="black", markersize=2.5, alpha=0.6)
    panel.set(title=f"t = {times[k]:.2f}", xlim=(-5, 5), ylim=(-5, 5), aspect="equal")

energy = panels.flat[4]
first = float((start.log_prob(x0 := start.sample(4000)) - log_prob(x0)).mean())
energy.semilogy(times, [first, *result.history["energy"]], "o-")
energy.set(xlabel="time", ylabel="divergence from the target, nats", title="Energy")

# sphinx_gallery_defer_figures

# %%
# Sampling
# --------
#
# Who only wants draws takes long steps: a JKO step is implicit, stable at any size, and mass goes
# to the mode where it is missing without waiting for a diffusion to carry it over. Importance
# weights make averages exact and give the normalising constant.

sample = sample_density(
    log_prob, start, (20.0, 200.0) if short else (20.0, 100.0, 1000.0), 2000, scheme=scheme,
    random_state=0,
)  # fmt: skip
print(f"log Z = {sample.log_normaliser:.4f} (exactly 0)")
print(f"effective sample size: {sample.effective_share:.0%} of the draws")

# sphinx_gallery_defer_figures

# %%
# Rejections after the maps put the right share into every mode, and keep the density.

last_measure = result.measures[-1]
exact = last_measure.corrected(log_prob, n_calibration=5000 if short else 50_000, random_state=1)
for name, measure in (("maps", last_measure), ("maps, then rejections", exact)):
    x = measure.sample(4000, torch.Generator().manual_seed(2))
    shares = torch.bincount(torch.cdist(x, centres).argmin(1), minlength=3) / len(x)
    print(f"shares of the modes, {name}: {[round(s, 3) for s in shares.tolist()]}")
print(f"draws per sample: {exact.draws_per_sample:.2f}, {exact.evidence(4000, random_state=3)}")

panel = panels.flat[5]
panel.plot(sample.x[:, 0], sample.x[:, 1], ".", color="tab:orange", markersize=2.0)
panel.set(title="2000 draws after long steps", xlim=(-5, 5), ylim=(-5, 5), aspect="equal")
figure.savefig("flow_relaxation.png", dpi=100)
