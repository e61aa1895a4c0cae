"""What goes wrong again and again, and is to be logged once."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


class Trouble:
    """Something that fails, is tried again and again, and is logged once."""

    def __init__(self) -> None:
        self._met = ""

    def met(self, text: str) -> None:
        """It has failed."""
        if text != self._met:
            log.error("%s", text)
        self._met = text

    def over(self) -> None:
        """It has succeeded: log it when it fails again."""
        self._met = ""
