"""A trace as lines, and as a picture."""

from __future__ import annotations

import errno
import os
import re
import socket
from typing import TYPE_CHECKING, Any, NoReturn, get_args
from xml.etree import ElementTree

import pytest

from inaccfs.chrometrace import Writer
from inaccfs.cli import main
from inaccfs.control.messages import TraceRecord
from inaccfs.errors import MountError
from inaccfs.shim.trace import What
from inaccfs.tracing import lines, svg
from inaccfs.tracing.chrome import Picture
from inaccfs.tracing.lines import Lines
from inaccfs.tracing.recording import Recording
from tests.chrome_traces import Trace
from tests.unit.test_rooms import PAGE

if TYPE_CHECKING:
    from pathlib import Path

SVG = "{http://www.w3.org/2000/svg}"

MS = 1_000_000
S = 1_000_000_000


def call(kind: What, began: int, time: int, **rest: Any) -> TraceRecord:
    given = {"ino": 5, "file": "/a", "end": 0x2000, "pid": 7, "command": "vmm"}
    return TraceRecord(kind=kind, began=began, time=time, **{**given, **rest})


def event(time: int, cause: int, **rest: Any) -> TraceRecord:
    given: dict[str, Any] = {
        "ino": 5,
        "file": "/a",
        "end": 0x2000,
        "event": "INVALIDATE",
    }
    given |= {"peer": 2, "pid": 8, "command": "kvm", "notifier": 1, "sequence": 1}
    return TraceRecord(kind="event", time=time, cause=cause, **{**given, **rest})


def answer(time: int, sent: TraceRecord, kind: What = "answer") -> TraceRecord:
    names = ("ino", "file", "end", "event", "peer", "pid", "command", "notifier")
    copied = {name: getattr(sent, name) for name in (*names, "sequence", "cause")}
    return TraceRecord(kind=kind, time=time, began=sent.time, **copied)


def picture(*records: TraceRecord, lost: int = 0) -> Trace:
    parts: list[bytes] = []
    made = Picture(parts.append)
    for record in records:
        made.add(record)
    made.close(lost, "1.2")
    return Trace(b"".join(parts))


# --- pictures ---------------------------------------------------------------------


def test_an_arrow_leads_from_a_punch_to_each_answer() -> None:
    first = event(2 * MS, cause=MS)
    second = event(3 * MS, cause=MS, peer=3, pid=9, notifier=2)
    trace = picture(
        first,
        second,
        answer(5 * MS, second),
        answer(7 * MS, first),
        call("punch", MS, 8 * MS),
    )
    (punch,) = trace.of("X", "punch")
    assert trace.place(punch) == ("files", "/a")
    assert (punch["ts"], punch["dur"]) == (1000, 7000)
    assert [begin for begin, _ in trace.arrows] == [punch, punch]
    ends = {trace.place(end): (end["ts"], end["dur"]) for _, end in trace.arrows}
    assert ends == {
        ("peers", "peer 2: kvm (8)"): (2000, 5000),
        ("peers", "peer 3: kvm (9)"): (3000, 2000),
    }
    assert {end["args"]["outcome"] for _, end in trace.arrows} == {"answered"}


def test_a_bracket_has_two_arrows_and_they_are_in_order() -> None:
    start = event(2 * MS, cause=MS, event="INVALIDATE_START")
    end = event(6 * MS, cause=MS, event="INVALIDATE_END", sequence=2)
    trace = picture(
        start,
        answer(4 * MS, start),
        end,
        answer(7 * MS, end),
        call("punch", MS, 8 * MS),
    )
    assert [end["name"] for _, end in trace.arrows] == [
        "INVALIDATE_START",
        "INVALIDATE_END",
    ]


def test_two_calls_at_once_have_tracks_and_arrows_of_their_own() -> None:
    one, other = event(2 * MS, cause=MS), event(4 * MS, cause=3 * MS, sequence=2)
    trace = picture(
        one,
        answer(3 * MS, one),
        other,
        answer(5 * MS, other),
        call("punch", MS, 6 * MS),
        call("punch", 3 * MS, 7 * MS),
    )
    assert [trace.place(each) for each in trace.of("X", "punch")] == [
        ("files", "/a"),
        ("files", "/a (2)"),
    ]
    assert [(begin["ts"], end["ts"]) for begin, end in trace.arrows] == [
        (1000, 2000),
        (3000, 4000),
    ]


def test_what_is_not_over_is_drawn_as_far_as_it_has_got() -> None:
    sent = event(2 * MS, cause=MS)
    trace = picture(sent, call("allocate", 3 * MS, 9 * MS, ino=6, file="/b"))
    ((begin, end),) = trace.arrows
    assert (begin["name"], begin["ts"], begin["dur"]) == (
        "a call that is not over",
        1000,
        8000,
    )
    assert end["args"]["outcome"] == "no answer in this trace"


@pytest.mark.parametrize(
    ("kind", "outcome"), [("evict", "evicted"), ("", "its notifier has gone")]
)
def test_a_notifier_that_has_not_answered(kind: What, outcome: str) -> None:
    sent = event(2 * MS, cause=MS)
    ends = [answer(4 * MS, sent, kind)] if kind else []
    trace = picture(sent, *ends, call("punch", MS, 5 * MS))
    ((_, end),) = trace.arrows
    assert end["args"]["outcome"] == outcome


def test_an_answer_to_what_was_sent_before_the_trace() -> None:
    sent = event(2 * MS, cause=MS)
    trace = picture(answer(4 * MS, sent), call("punch", MS, 5 * MS))
    assert len(trace.of("X", "INVALIDATE")) == 1


def test_what_takes_no_time_is_a_mark() -> None:
    refused = call("read", 0, MS, error="EINVAL")
    got = TraceRecord(kind="get", time=2 * MS, ino=5, file="/a", peer=2)
    moved = TraceRecord(kind="move", time=3 * MS, ino=5, file="/a")
    poisoned = event(4 * MS, cause=0, event="MEMORY_ERROR", sequence=0)
    trace = picture(refused, got, moved, poisoned)
    marks = trace.of("i")
    assert [(each["name"], trace.place(each)[0]) for each in marks] == [
        ("read", "files"),
        ("get", "peers"),
        ("move", "files"),
        ("MEMORY_ERROR", "peers"),
    ]
    assert marks[0]["args"]["error"] == "EINVAL"
    assert (marks[0]["args"]["pid"], marks[0]["args"]["command"]) == (7, "vmm")


def test_an_empty_trace_is_a_whole_file() -> None:
    trace = picture(lost=3)
    assert trace.events == []
    assert trace.about == {"inaccfs": "1.2", "records": 0, "lost": 3}


def test_any_name_is_json() -> None:
    parts: list[bytes] = []
    group = 'a "group"\n'
    writer = Writer(parts.append, [group])
    track = writer.track(group, "\x1b[2J")
    writer.slice(track, "\\", 0, 1, "x")
    writer.close()
    assert Trace(b"".join(parts)).place({"pid": 1, "tid": 1})[1] == "\x1b[2J"


# --- lines ------------------------------------------------------------------------


def shown(record: TraceRecord) -> str:
    """A line without its time of day."""
    line = Lines().line(record)
    clock, rest = line.split(" ", 1)
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{6}", clock)
    return rest


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            call("punch", S, S + 812_000, start=0x1000),
            "[7 vmm] punch(/a, 0x1000, 0x2000) = 0 <0.000812>",
        ),
        (
            call("allocate", S, 2 * S, error="ENOSPC"),
            (
                "[7 vmm] allocate(/a, 0x0, 0x2000) "
                "= -1 ENOSPC (No space left on device) <1.000000>"
            ),
        ),
        (
            call("truncate", S, 2 * S, start=0x3000, end=0),
            "[7 vmm] truncate(/a, from 0x0 to 0x3000) = 0 <1.000000>",
        ),
        (
            call("ioctl", 0, S, error="ENOTTY"),
            "[7 vmm] ioctl(/a) = -1 ENOTTY (Inappropriate ioctl for device)",
        ),
        (
            call("read", 0, S, error="EINVAL", file="", pid=0, command=""),
            "[?] read(inode 5, 0x0, 0x2000) = -1 EINVAL (Invalid argument)",
        ),
        (event(S, cause=1), "[peer 2, 8 kvm] <- INVALIDATE(/a, 0x0, 0x2000) #1"),
        (
            answer(S + 5000, event(S, cause=1)),
            "[peer 2, 8 kvm] answers INVALIDATE(/a, 0x0, 0x2000) #1 <0.000005>",
        ),
        (
            answer(2 * S, event(S, cause=1), "evict"),
            (
                "[peer 2, 8 kvm] is evicted, without an answer to "
                "INVALIDATE(/a, 0x0, 0x2000) #1 <1.000000>"
            ),
        ),
        (
            TraceRecord(kind="put", time=S, ino=5, file="/a", end=4096, peer=3),
            "[peer 3] put(/a, 0x0, 0x1000)",
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, TraceRecord) else "",
)
def test_a_line_says_who_what_outcome_and_how_long(
    record: TraceRecord, line: str
) -> None:
    assert shown(record) == line


def test_what_is_missing_is_a_line_too() -> None:
    assert lines.lost(3) == "+++ 3 records lost: they were not read in time +++"


# --- pictures for pages -----------------------------------------------------------


def test_a_picture_for_a_page_has_what_the_trace_has() -> None:
    sent = event(2 * MS, cause=MS, command="<kvm> & co")
    trace = picture(sent, answer(4 * MS, sent), call("punch", MS, 5 * MS))
    drawn = ElementTree.fromstring(svg.draw(trace.events))
    names = [each.get("class") for each in drawn.iter(f"{SVG}rect")]
    assert names == [None, "call", "event"] or names == [None, "event", "call"]
    assert len([each for each in drawn.iter(f"{SVG}path") if each.get("class")]) == 1
    texts = [each.text for each in drawn.iter(f"{SVG}text")]
    assert "peer 2: <kvm> & co (8)" in texts
    assert "punch, 4000 µs" in texts


def test_a_trace_without_slices_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="nothing"):
        svg.draw(picture().events)


def test_the_page_and_the_help_have_every_kind(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (PAGE.parent / "tracing.md").read_text()
    rows = re.findall(r"^\| ([a-z, ]+) \|", page, re.MULTILINE)
    kinds = {kind for row in rows for kind in row.split(", ")} - {"kind"}
    assert kinds == set(get_args(What))
    with pytest.raises(SystemExit):
        main(["trace", "-h"])
    shown = " ".join(capsys.readouterr().out.split())
    assert ", ".join(get_args(What)) in shown


def test_a_recorder_that_no_fd_is_left_for_leaves_none_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socketpair", refuse)
    path = tmp_path / "trace"
    with pytest.raises(MountError, match="recorder: Too many open files"):
        Recording(str(path), {})
    opened = {
        os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
    }
    assert str(path.resolve()) not in opened
