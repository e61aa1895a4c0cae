"""Exit statuses of the command, besides 0 and 1."""

from __future__ import annotations

from typing import Final

USAGE: Final = 2
"""The arguments are wrong, as in argparse."""

TROUBLE: Final = 2
"""The command failed; of commands whose status 1 is a result, as in cmp(1)."""

INTERRUPTED: Final = 130
"""After Ctrl-C: 128 plus SIGINT, as in a shell."""
