"""Exit statuses of the command, besides 0 and 1."""

from __future__ import annotations

from typing import Final

USAGE: Final = 2
"""The arguments are wrong, as in argparse."""

INTERRUPTED: Final = 130
"""After Ctrl-C: 128 plus SIGINT, as in a shell."""
