"""``python -m drojko`` is the console script ``drojko`` (and what torchrun starts)."""

from drojko._cli import main

if __name__ == "__main__":
    main()
