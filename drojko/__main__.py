"""``python -m drojko`` and the console script ``drojko`` (also what torchrun starts)."""

import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; Ctrl-C ends it with exit code 130 while it is being imported, too."""
    try:
        from drojko._cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:  # all is done: nothing is left to interrupt
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()
