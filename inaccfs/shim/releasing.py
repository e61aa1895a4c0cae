"""Releasing pins and mappings, which the kernel may refuse."""

from __future__ import annotations

from contextlib import suppress
from threading import Lock, Timer
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from inaccfs.trouble import Trouble

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T", int, tuple[int, int])

_TRY_AGAIN_SECONDS: Final = 1.0


class Releasing(Generic[T]):
    """Releases pins or mappings by their tokens, and tries again if that is refused.

    The kernel refuses only if it has no memory (ENOMEM). Memory that stayed pinned or
    mapped would be lost, so the kernel is asked again every second, by a thread that
    exists only meanwhile.
    """

    def __init__(self, let_go: Callable[[list[T], int], int]) -> None:
        """*let_go* releases tokens of a list, from an index on; returns how many.

        It may raise `OSError`, and is called by one thread at a time for a token.
        """
        self._let_go: Final[Callable[[list[T], int], int]] = let_go
        self._trouble: Final = Trouble()
        self._lock: Final = Lock()
        self._refused: list[T] = []
        # Tries them again. If the thread could not be started, this is None, and the
        # next release starts one.
        self._timer: Timer | None = None
        self._closed = False

    def release(self, tokens: list[T]) -> None:
        """Release *tokens*, now or later."""
        refused = self._try(tokens)
        if refused or self._refused:
            self._try_later(refused)

    def close(self) -> None:
        """Stop trying."""
        with self._lock:
            self._closed = True
            timer = self._timer
        if timer is not None:
            timer.cancel()
            timer.join()

    def _try(self, tokens: list[T]) -> list[T]:
        """Returns the tokens that were not released."""
        at = 0
        try:
            while at < len(tokens):
                at += self._let_go(tokens, at)
        except OSError as exc:
            self._trouble.met(f"pages stay in use for now: {exc.strerror}")
        return tokens[at:]

    def _try_later(self, tokens: list[T]) -> None:
        with self._lock:
            self._refused += tokens
            if self._closed or self._timer is not None:
                return
            timer = Timer(_TRY_AGAIN_SECONDS, self._try_again)
            # Python does not wait for this thread at exit.
            timer.daemon = True
            with suppress(RuntimeError):
                timer.start()
                self._timer = timer

    def _try_again(self) -> None:
        with self._lock:
            tokens, self._refused = sorted(self._refused), []
        refused = self._try(tokens)
        # Do this last: until then `close` waits for this thread.
        with self._lock:
            self._timer = None
        if refused or self._refused:
            self._try_later(refused)
        else:
            self._trouble.over()
