"""The ``polypod`` command. `main` is the entry point; each file beside this one holds a few commands."""

from polypod.cli.main import main

__all__ = ["main"]
