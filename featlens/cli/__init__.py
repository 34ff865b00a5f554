"""The ``featlens`` command: lazy commands from the entry-point group ``featlens.commands``."""

from featlens.cli.dispatch import build_parser, command_names, main

__all__ = ["build_parser", "command_names", "main"]
