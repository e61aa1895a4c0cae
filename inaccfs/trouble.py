"""Logs a repeated failure once."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


class Trouble:
    """Something that may fail many times in a row, and is logged once."""

    def __init__(self) -> None:
        self._met = ""

    def met(self, text: str) -> None:
        """Record a failure: log *text*, unless it was the last one logged."""
        if text != self._met:
            log.error("%s", text)
        self._met = text

    def over(self) -> None:
        """Record a success: the next failure is logged again."""
        self._met = ""
