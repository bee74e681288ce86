"""``python -m tests.fuzz [calls] [seed]``: wrong and extreme arguments to everything public.

Prints what became of the calls, and every foreign error, silent NaN and hang once.
"""

import sys

from tests.fuzz.run import main

if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
