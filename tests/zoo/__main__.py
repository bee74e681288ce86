"""``python -m tests.zoo [part of pipeline/model]``: what works of the zoo, and what the rest says.

Prints each message once, every failure, and the share that works; some minutes.
"""

import sys

from tests.zoo.run import main

if __name__ == "__main__":
    main(*sys.argv[1:2])
