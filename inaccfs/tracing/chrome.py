"""Records of a trace as a picture: a track for each file, and one for each peer.

A system call or command is a slice on the track of its file. An event is a slice on the
track of the peer that got it, from when it was sent to its answer, with an arrow from
the call.
A record without a duration is a mark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.chrometrace import Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.chrometrace import Details, Track
    from inaccfs.control.messages import TraceRecord

_PEERS: Final = "peers"
_FILES: Final = "files"

# The names of the ends of a range that is not a range of the file.
_RANGES: Final = {
    "truncate": ("size", "size before"),
    "put": ("address", "end address"),
}


class _Sent(NamedTuple):
    """Identifies an event that a notifier has to answer."""

    ino: int
    notifier: int
    sequence: int


class _Drawn(NamedTuple):
    """An event on the track of the peer that got it."""

    track: Track
    record: TraceRecord


class _Tracks:
    """The tracks of one file or peer: as many as needed, so that no slices overlap."""

    def __init__(self, writer: Writer, group: str, name: str) -> None:
        self._writer: Final = writer
        self._group: Final = group
        self._name: Final = name
        # Each track, with the end of its last slice.
        self._ends: Final[dict[Track, int]] = {}

    @property
    def first(self) -> Track:
        """The track for marks, which may overlap slices."""
        return next(iter(self._ends), None) or self._add()

    def free(self, start: int, end: int) -> Track:
        """Reserve a track that is free from *start* on, up to *end*.

        Slices must come in order of their ends.
        """
        for track, last in self._ends.items():
            if last <= start:
                self._ends[track] = end
                return track
        track = self._add()
        self._ends[track] = end
        return track

    def _add(self) -> Track:
        number = f" ({len(self._ends) + 1})" if self._ends else ""
        track = self._writer.track(self._group, f"{self._name}{number}")
        self._ends[track] = 0
        return track


class Picture:
    """Draws records in the order in which they come."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        """*write* takes the parts of the file."""
        self._writer: Final = Writer(write, (_FILES, _PEERS))
        # By inode number, and by the number of the peer.
        self._files: Final[dict[int, _Tracks]] = {}
        self._peers: Final[dict[int, _Tracks]] = {}
        # Events without an answer so far; and, by when it began, the events already
        # drawn of each system call in progress.
        self._sent: Final[dict[_Sent, TraceRecord]] = {}
        self._drawn: Final[dict[int, list[_Drawn]]] = {}
        self._last = 0
        self._count = 0

    def add(self, record: TraceRecord) -> None:
        """Draw a record."""
        self._count += 1
        self._last = record.time
        if record.kind == "event":
            self._send(record)
        elif record.kind in ("answer", "evict"):
            self._answer(record)
        elif record.began:
            self._call(record)
        elif record.peer:
            self._mark(self._peer(record).first, record)
        else:
            name = record.event if record.kind == "request" else ""
            self._mark(self._file(record).first, record, name)

    def close(self, lost: int, version: str) -> None:
        """Write the end. What is still in progress is drawn up to now."""
        for sent in list(self._sent.values()):
            self._end_event(sent, self._last, "no answer in this trace")
        for began, drawn in list(self._drawn.items()):
            record = drawn[0].record
            self._draw_call(record, "a call that is not over", began, self._last)
        about: Details = {"inaccfs": version, "records": self._count, "lost": lost}
        self._writer.close(about)

    # --- slices -----------------------------------------------------------------------

    def _call(self, record: TraceRecord) -> None:
        for sent in [one for one in self._sent.values() if one.cause == record.began]:
            # Its notifier was unregistered, which counts as an answer.
            self._end_event(sent, record.time, "its notifier has gone")
        name = record.event if record.kind == "request" else record.kind
        self._draw_call(record, name, record.began, record.time)

    def _draw_call(self, record: TraceRecord, name: str, began: int, end: int) -> None:
        track = self._file(record).free(began, end)
        category = "refused" if record.error else "call"
        self._writer.slice(track, name, began, end, category, _details(record))
        for drawn in self._drawn.pop(began, ()):
            self._writer.flow(
                name, (track, drawn.record.time), (drawn.track, drawn.record.time)
            )

    def _send(self, record: TraceRecord) -> None:
        if record.sequence:
            self._sent[_key(record)] = record
        else:
            self._mark(self._peer(record).first, record, record.event)

    def _answer(self, record: TraceRecord) -> None:
        sent = self._sent.get(_key(record))
        if sent is None:
            # The event was sent before the trace began, or its record was lost.
            if record.began:
                outcome = "answered" if record.kind == "answer" else "evicted"
                self._draw_event(record, record.began, record.time, outcome)
            else:
                self._mark(self._peer(record).first, record)
            return
        self._end_event(
            sent, record.time, "answered" if record.kind == "answer" else "evicted"
        )

    def _end_event(self, sent: TraceRecord, end: int, outcome: str) -> None:
        del self._sent[_key(sent)]
        track = self._draw_event(sent, sent.time, end, outcome)
        if sent.cause:
            self._drawn.setdefault(sent.cause, []).append(_Drawn(track, sent))

    def _draw_event(
        self, record: TraceRecord, start: int, end: int, outcome: str
    ) -> Track:
        track = self._peer(record).free(start, end)
        details = {**_details(record), "outcome": outcome}
        self._writer.slice(track, record.event, start, end, "event", details)
        return track

    def _mark(self, track: Track, record: TraceRecord, name: str = "") -> None:
        category = "refused" if record.error else record.kind
        self._writer.instant(
            track, name or record.kind, record.time, category, _details(record)
        )

    # --- tracks -----------------------------------------------------------------------

    def _file(self, record: TraceRecord) -> _Tracks:
        if (found := self._files.get(record.ino)) is None:
            name = record.file or f"inode {record.ino}"
            found = self._files[record.ino] = _Tracks(self._writer, _FILES, name)
        return found

    def _peer(self, record: TraceRecord) -> _Tracks:
        if (found := self._peers.get(record.peer)) is None:
            process = f": {record.command} ({record.pid})" if record.pid else ""
            name = f"peer {record.peer}{process}"
            found = self._peers[record.peer] = _Tracks(self._writer, _PEERS, name)
        return found


def _key(record: TraceRecord) -> _Sent:
    return _Sent(record.ino, record.notifier, record.sequence)


def _details(record: TraceRecord) -> Details:
    first, second = _RANGES.get(record.kind, ("start", "end"))
    found: dict[str, str | int] = {
        "file": record.file or f"inode {record.ino}",
        first: f"{record.start:#x}",
        second: f"{record.end:#x}",
    }
    for name in ("pid", "command", "peer", "notifier", "sequence", "error"):
        if value := getattr(record, name):
            found[name] = value
    return found
