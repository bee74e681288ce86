"""Real processes for the tests of several ranks."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment():
    paths = os.pathsep.join([str(ROOT), *sys.path])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def torchrun(count, *command, timeout=300):
    """What `torchrun --nproc-per-node=count command` gives."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return subprocess.run(
        [sys.executable, *start, *map(str, command)],
        env=environment(), check=False, timeout=timeout, capture_output=True, text=True,
    )  # fmt: skip
