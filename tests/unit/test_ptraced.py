"""Which process traces the daemon; and no other process can."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from inaccfs import ptraced, syscalls
from inaccfs.errors import MountError
from inaccfs.ptraced import Tracer, tracer

if TYPE_CHECKING:
    from pathlib import Path

ME = os.geteuid()
OTHER = 4321


def process(proc: Path, name: str, **fields: object) -> None:
    (proc / name).mkdir(exist_ok=True)
    lines = [f"{key}:\t{value}\n" for key, value in fields.items()]
    (proc / name / "status").write_text("".join(lines))


def traced_by(proc: Path, name: str, *uids: int) -> Tracer | None:
    process(proc, "self", Name="python3", TracerPid=12)
    process(proc, "12", Name=name, Uid="\t".join(map(str, (*uids, uids[0]))))
    return tracer(proc)


def test_most_processes_are_not_traced(tmp_path: Path) -> None:
    process(tmp_path, "self", Name="TracerPid:", TracerPid=0)
    assert tracer(tmp_path) is None


def test_this_process_has_a_tracer_or_none() -> None:
    assert tracer() is None or str(tracer())


@pytest.mark.parametrize(
    ("uids", "is_foreign"),
    [
        ((ME, ME, ME), False),
        ((0, 0, 0), False),
        ((OTHER, OTHER, OTHER), True),
        # Another user has started this program with more rights.
        ((OTHER, 0, 0), True),
        ((ME, 0, 0), False),
    ],
    ids=str,
)
def test_the_owner_of_a_tracer(
    tmp_path: Path, uids: tuple[int, int, int], is_foreign: bool
) -> None:
    found = traced_by(tmp_path, "strace", *uids)
    assert found is not None
    assert str(found) == "strace (pid 12)"
    assert found.is_foreign is is_foreign


def test_a_name_is_no_escape_sequence(tmp_path: Path) -> None:
    found = traced_by(tmp_path, "a\x1b[31mb", 0, 0, 0)
    assert str(found) == "a?[31mb (pid 12)"


def test_a_tracer_that_is_hidden_is_reported(tmp_path: Path) -> None:
    """With hidepid= of proc(5) it seems to be another user's process."""
    process(tmp_path, "self", TracerPid=12)
    found = tracer(tmp_path)
    assert found is not None
    assert (found.pid, found.is_foreign) == (12, True)


def test_a_tracer_that_ends_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = iter([12, 0, 0])
    monkeypatch.setattr(
        ptraced,
        "_fields",
        lambda path: (
            {"TracerPid": str(next(pids))}
            if path.name == "self"
            else (_ for _ in ()).throw(ProcessLookupError())
        ),
    )
    assert tracer(tmp_path) is None


def test_another_users_tracer_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden: list[bool] = []
    monkeypatch.setattr(syscalls, "set_dumpable", hidden.append)
    found = traced_by(tmp_path, "strace", OTHER, OTHER, OTHER)
    monkeypatch.setattr(ptraced, "tracer", lambda: found)
    with pytest.raises(MountError, match=rf"strace \(pid 12\) of user {OTHER}"):
        ptraced.hide()
    assert hidden == [False]
