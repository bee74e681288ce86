"""What works of the zoo, and what the rest says: a line for each case, then a summary.

The summary has each message once, every failure, and the share that works. All of it takes ten
minutes of one core; ``--part 1/4`` is a quarter.
"""

import argparse
import sys

from tests.zoo.run import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tests.zoo", description=__doc__)
    parser.add_argument("only", nargs="?", default="", help="part of PIPELINE/MODEL")
    parser.add_argument("--part", default="1/1", help="k/n: the k-th of n parts")
    settings = parser.parse_args()
    sys.exit(main(settings.only, *map(int, settings.part.split("/"))) > 0)
