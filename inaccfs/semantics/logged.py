"""Rules that log their refusals, to show which rule refused a call."""

from __future__ import annotations

import copy
import functools
import logging
from typing import TYPE_CHECKING, Final

from inaccfs import errnos

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.semantics.rules import Semantics

log = logging.getLogger(__name__)

_CHECKS: Final = {
    "check_size": ("current", "new", "page_size"),
    "check_fallocate": ("mode", "offset", "length", "page_size"),
}


def with_logged_refusals(rules: Semantics) -> Semantics:
    """*rules* with checks that log each refusal, if the log has level DEBUG.

    Otherwise *rules* itself is returned, so the checks cost nothing more.
    """
    if not log.isEnabledFor(logging.DEBUG):
        return rules
    logged = copy.copy(rules)
    for name, words in _CHECKS.items():
        vars(logged)[name] = _logged(rules.name, name, getattr(rules, name), words)
    return logged


def _logged(
    rules: str, name: str, check: Callable[..., None], words: tuple[str, ...]
) -> Callable[..., None]:
    @functools.wraps(check)
    def logged(*args: object) -> None:
        try:
            check(*args)
        except OSError as exc:
            asked = ", ".join(map("{}={}".format, words, args))
            errno_name = errnos.name(exc.errno)
            log.debug("%s: %s(%s): %s", rules, name, asked, errno_name)
            raise

    return logged
