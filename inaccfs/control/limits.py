"""The limits of peers, and which users may be peers."""

from __future__ import annotations

from dataclasses import dataclass, fields

from inaccfs.errors import OptionError
from inaccfs.words import natural, quoted


@dataclass(frozen=True, slots=True)
class Limits:
    """Each can be set by `--limit NAME=N`; errors that it causes name it."""

    # Bytes of a message that a peer may send.
    message: int = 65536
    # Connections at the same time.
    peers: int = 256
    # For each peer: names of fds, notifiers, and pages that it has got or pinned and
    # not given back.
    fdnames: int = 64
    notifiers: int = 1024
    pages: int = 1_000_000
    # Bytes that may wait for a peer to read them. One reply may be longer.
    output: int = 1 << 20
    # For all peers together: bytes that wait to be read, and notifiers.
    total_output: int = 16 << 20
    total_notifiers: int = 1 << 16

    def changed(self, text: str) -> Limits:
        """These limits with one changed, written as NAME=N.

        Raises:
            OptionError: there is no such limit, or N is not a positive number.
        """
        name, _, number = text.partition("=")
        names = [field.name for field in fields(self)]
        if name not in names:
            raise OptionError(
                f"limit {quoted(name)} is not one of {', '.join(names)}: write NAME=N"
            )
        if not (found := natural(number)):
            raise OptionError(
                f"limit {quoted(text)} is no positive number: write {name}=N"
            )
        values = {name: getattr(self, name) for name in names}
        return Limits(**{**values, name: found})


@dataclass(frozen=True, slots=True)
class Policy:
    """How the control socket deals with peers."""

    limits: Limits = Limits()
    # Users who may connect besides root and the owner, the daemon's own user.
    allowed_uids: frozenset[int] = frozenset()
    # Whether get-memory is allowed.
    guest_access: bool = True
    # How long a peer may leave an event unanswered, or data unread.
    ack_seconds: float = 10.0
