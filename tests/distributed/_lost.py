"""Two processes, of which the second one ends within a fit: RANK, WORLD_SIZE are set."""

import os
import sys
import warnings

from drojko.ambiguity import CVaR
from drojko.distributed import sharded
from drojko.exceptions import DrojkoError
from tests.distributed._fits import Then, classifier, data

warnings.simplefilter("ignore")
X, y, *_ = data("plain")
with sharded(timeout=100) as ranks:
    model = classifier(CVaR(0.3), loss="hinge")
    model.set_callbacks(Then(2, lambda: os._exit(3) if ranks.rank else False))
    try:
        model.fit(X, y)
    except DrojkoError as error:
        print(error)
        sys.stdout.flush()
        os._exit(4)
