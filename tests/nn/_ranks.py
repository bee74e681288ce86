"""What each of several processes does: ``torchrun --nproc-per-node=2 _ranks.py OUT``."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from drojko.ambiguity import KL, CVaR, Group, Wasserstein
from drojko.exceptions import NonFiniteError
from drojko.nn import RobustLoss, worst_inputs

CASES = {
    "kl": (KL(radius=0.2), False),
    "cvar": (CVaR(0.3), False),
    "group": (Group(), False),
    "running": (KL(radius=0.2), True),
}
SPLIT = 7  # of 12 rows: ranks of unequal lengths


def data():
    rng = np.random.default_rng(5)
    x = torch.from_numpy(rng.normal(size=(3, 12, 3)))  # three batches
    y = torch.from_numpy(rng.normal(size=(3, 12)))
    w = torch.from_numpy(rng.uniform(0.5, 2.0, size=(3, 12)))
    return x, y, w, np.array(list("abcabcaabbcc"))


def gradients(case, rows, wrap=lambda module: module):
    """Values and gradients of each batch, on some of its rows."""
    ambiguity, running = CASES[case]
    model = nn.Linear(3, 1).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.linspace(-1.0, 1.0, p.numel()).reshape(p.shape))
    model, robust, found = wrap(model), RobustLoss(ambiguity, running=running), []
    for x, y, w in zip(*data()[:3]):
        model.zero_grad()
        losses = (model(x[rows]).squeeze(1) - y[rows]) ** 2
        value = robust(losses, weights=w[rows], groups=data()[3][rows])
        value.backward()
        found.append(
            [value.item(), *(g for p in model.parameters() for g in p.grad.flatten().tolist())]
        )
    return found


def main(out):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    rows = slice(0, SPLIT) if rank == 0 else slice(SPLIT, None)
    found = {case: gradients(case, rows, DistributedDataParallel) for case in CASES}
    found["empty"] = RobustLoss(KL(0.2))(torch.arange(4.0)[: 4 * rank]).item()
    try:
        RobustLoss(KL(0.2))(torch.tensor([1.0, float("nan") if rank else 2.0]))
    except NonFiniteError as error:
        found["error"] = str(error)
    train_on_worst_inputs()
    Path(out, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads now and then abort the interpreter's own way out


def train_on_worst_inputs():
    model = DistributedDataParallel(nn.Linear(3, 1).double())
    x, y = data()[0][0], data()[1][0]
    for _ in range(2):  # a forward pass without a backward one would stop the next
        worst = worst_inputs(
            model, lambda f, t: (f.squeeze(1) - t) ** 2, x, y, Wasserstein(radius=0.1)
        )
        (model(worst).squeeze(1) - y).square().mean().backward()


if __name__ == "__main__":
    main(sys.argv[1])
