"""``python -m tests.fuzz [calls] [seed]``: wrong and extreme arguments to everything public.

Prints what became of the calls, and every foreign error, silent NaN and hang once.
"""

import contextlib
import sys
import tempfile

from tests.fuzz.run import main

if __name__ == "__main__":
    # Odd names of files are among the arguments.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        main(*(int(word) for word in sys.argv[1:]))
