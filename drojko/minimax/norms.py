"""The product of the layers' norms: what makes proven bounds of a perceptron tight."""

from __future__ import annotations

import torch
from torch import Tensor

from drojko.exceptions import UnsupportedError
from drojko.minimax.problem import RobustProblem
from drojko.models import dense_layers

__all__ = ["NormProduct"]

_SWEEPS = 2  # of the power iteration a step, from where the last one ended


class NormProduct:
    r"""The penalty :math:`\gamma\,\|W_1 C^{-1/2}\|_2 \prod_{l>1} \|W_l\|_2` of a problem's model.

    gamma is the problem's ``certified``, C its ground cost on the columns that move. The product
    times the slopes of the activations is a Lipschitz constant of the outputs. Gradients come from
    power iterations that start at the exact singular vectors and follow the weights.

    Raises
    ------
    UnsupportedError
        When the model is no perceptron.
    """

    def __init__(self, problem: RobustProblem) -> None:
        layers = dense_layers(problem.model)
        if layers is None:
            raise UnsupportedError(
                "certified is for model='mlp' and modules that are an nn.Sequential of nn.Linear "
                "layers and activations: write the module so, or leave certified at 0 and use "
                "alpha, or torch.nn.utils.parametrizations.spectral_norm in its layers"
            )
        self.gamma, self.layers = problem.certified, layers
        known = list(problem.model.parameters())
        self.places = [next(k for k, p in enumerate(known) if p is layer) for layer in layers]
        root = torch.as_tensor(problem.cost.inverse_weights).sqrt().to(layers[0])
        self.root = None if bool((root == 1).all()) else root
        self.vectors = [self._top(w) for w in self._weights()]

    def _weights(self) -> list[Tensor]:
        """The weights, the first ones in the coordinates of the cost."""
        first, *others = (layer.detach() for layer in self.layers)
        return [first if self.root is None else first * self.root, *others]

    @staticmethod
    def _top(weight: Tensor) -> Tensor:
        """The leading right singular vector."""
        gram = weight @ weight.T if len(weight) < weight.shape[1] else weight.T @ weight
        vector = torch.linalg.eigh(gram)[1][:, -1]
        return weight.T @ vector if len(weight) < weight.shape[1] else vector

    def value(self) -> float:
        """The penalty at the present weights."""
        norms = [torch.linalg.matrix_norm(w.double(), 2) for w in self._weights()]
        return self.gamma * float(torch.stack(norms).prod())

    def add_gradient(self, views: list[Tensor]) -> None:
        """Add the gradient at the present weights to one by parameter."""
        norms, slopes = [], []
        for k, w in enumerate(self._weights()):
            v = self.vectors[k]
            for _ in range(_SWEEPS):
                v = v / v.norm().clamp_min(1e-30)
                u = w @ v
                norm = u.norm()
                u = u / norm.clamp_min(1e-30)
                v, before = w.T @ u, v
            self.vectors[k] = v
            norms.append(norm)
            slopes.append((u, before if k or self.root is None else before * self.root))
        for k, (u, v) in enumerate(slopes):
            others = torch.stack([self.gamma * u.new_ones(()), *norms[:k], *norms[k + 1 :]]).prod()
            views[self.places[k]].addmm_((u * others)[:, None], v[None, :])
