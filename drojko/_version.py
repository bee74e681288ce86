"""The version, for whoever writes it down: files, pages, the command line."""

__version__ = "0.1.0"
