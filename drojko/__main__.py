"""``python -m drojko`` and the console script ``drojko`` (also what torchrun starts)."""

import os
import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; Ctrl-C ends it with exit code 130 while it is being imported, too."""
    try:
        from drojko._cli import main as run

        run()
    except KeyboardInterrupt:
        _leave()
    except SystemExit as ended:
        if ended.code == 130:
            _leave()
        raise
    finally:  # all is done: nothing is left to interrupt
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _leave() -> None:
    """Exit with 130: after Ctrl-C within an `exec` Python itself would end by the signal."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(130)


if __name__ == "__main__":
    main()
