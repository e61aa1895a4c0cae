"""The rates of a trace, and how inaccfs top shows them."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from inaccfs.cli.topview import View
from inaccfs.control.messages import NotifierInfo, Stats, TraceRecord
from inaccfs.tracing.rates import WINDOW_SECONDS, Rates
from tests.unit.daemon_fakes import STATUS

S = 1_000_000_000
US = 1000


def call(time: int, took: int = 0, **rest: Any) -> TraceRecord:
    given = {"kind": "allocate", "ino": 5, "file": "/a", "pid": 7, "command": "vmm"}
    began = time - took if took else 0
    return TraceRecord(time=time, began=began, **{**given, **rest})


def test_rates_are_of_the_last_seconds_and_totals_of_all() -> None:
    rates = Rates()
    rates.add(call(S, 10 * US) for _ in range(5))
    rates.add(call(9 * S, took * US) for took in range(1, 101))
    (one,) = rates.rates(10 * S)
    assert one.a_second == 100 / WINDOW_SECONDS
    assert one.p50 == pytest.approx(50e-6)
    assert one.p99 == pytest.approx(99e-6)
    assert one.total == 105
    (later,) = rates.rates(60 * S)
    assert (later.a_second, later.p50, later.total) == (0, None, 105)


def test_the_most_frequent_kind_comes_first() -> None:
    rates = Rates()
    rates.add([call(S), call(S, kind="request", event="GETATTR"), call(S)])
    assert [one.kind for one in rates.rates(S)] == ["allocate", "getattr"]


def test_what_was_refused_is_counted_for_each_who_tried() -> None:
    rates = Rates()
    refused: dict[str, Any] = {"kind": "read", "error": "EINVAL"}
    rates.add([call(S, **refused), call(2 * S, **refused)])
    rates.add([call(3 * S, pid=8, command="cat", **refused)])
    # The kernel sends these by itself.
    rates.add([call(4 * S, kind="request", event="LOOKUP", error="ENOENT")])
    found = [(one.command, one.pid, one.times) for one in rates.refused(4 * S)]
    assert found == [("cat", 8, 1), ("vmm", 7, 2)]
    by_kind = {one.kind: one.refused_a_second for one in rates.rates(4 * S)}
    assert by_kind == {"read": 3 / WINDOW_SECONDS, "lookup": 0}
    assert rates.refused(10_000 * S) == []


def test_an_event_is_in_flight_until_it_is_answered() -> None:
    rates = Rates()
    event = {"notifier": 3, "sequence": 1, "peer": 2}
    rates.add([call(S, kind="event", event="INVALIDATE", **event)])
    assert rates.sent(3, 1) == S
    assert rates.sent(3, 2) is None
    rates.add([call(2 * S, kind="answer", event="INVALIDATE", **event)])
    assert rates.sent(3, 1) is None


def test_a_notifier_that_is_unregistered_leaves_no_event_in_flight() -> None:
    """That counts as its answer, and has no record."""
    rates = Rates()
    for at in range(S, 100 * S, S):
        event = {"notifier": at, "sequence": 1, "peer": 2, "cause": at}
        rates.add([call(at, kind="event", event="INVALIDATE", **event)])
        assert rates.sent(at, 1) == at
        rates.add([call(at + US, US)])
        assert rates.sent(at, 1) is None
    assert not rates._sent
    assert not rates._of_call


def test_an_event_without_a_cause_is_in_flight_until_it_is_answered() -> None:
    """A put has no beginning: it ends no call."""
    rates = Rates()
    for sequence in range(1, 10):
        event = {"notifier": 3, "sequence": sequence, "peer": 2}
        rates.add([call(S, kind="event", event="MEMORY_ERROR", **event)])
        rates.add([call(S + 1, kind="put")])
        assert rates.sent(3, sequence) == S
        rates.add([call(2 * S, kind="answer", event="MEMORY_ERROR", **event)])
    assert not rates._sent
    assert not rates._of_call


# --- the screen -------------------------------------------------------------------

STATS = Stats(**dict.fromkeys(Stats.__struct_fields__, 7))


def waiting(number: int) -> NotifierInfo:
    return NotifierInfo(
        notifier=number,
        file="/a" * 60,
        ino=5,
        peer=2,
        pid=8,
        start=None,
        end=None,
        effective=True,
        events_sent=1,
        waiting=1,
    )


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60), (40, 10)])
def test_a_screen_fits_and_has_plain_characters_only(width: int, height: int) -> None:
    rates = Rates()
    kinds = [f"K{number}" for number in range(60)]
    rates.add(call(S, 5 * US, kind="request", event=kind) for kind in kinds)
    rates.add(
        call(S, kind="read", error="EINVAL", pid=pid, command="\x1b[2J\u2588")
        for pid in range(30)
    )
    view = View(
        STATUS,
        STATS,
        [waiting(number) for number in range(30)],
        silent=5.0,
        lost=3,
        rates=rates,
        now=S,
    )
    out = StringIO()
    console = Console(file=out, width=width, height=height, markup=False)
    console.print(view.drawn(height))
    lines = out.getvalue().rstrip("\n").split("\n")
    assert max(map(len, lines)) <= width
    text = out.getvalue()
    assert "\x1b" not in text
    assert text.replace("\u2588", "").isascii()
    if width >= 80:
        assert len(lines) <= height
        assert "no answer for 5 s" in text
        assert "3 records lost" in text
        assert "peer 2, notifier 0" in text
        assert "more" in text
