"""Logs a repeated failure once."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


class Trouble:
    """Something that may fail many times in a row, and is logged once."""

    def __init__(self) -> None:
        self._met = ""

    def met(self, text: str) -> None:
        """It has failed: log *text*, unless that was logged last."""
        if text != self._met:
            log.error("%s", text)
        self._met = text

    def over(self) -> None:
        """It has succeeded: log it when it fails again."""
        self._met = ""
