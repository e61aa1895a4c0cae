"""The explorer refuses actions of a scenario that it cannot follow."""

from __future__ import annotations

import itertools
import os
import random
import socket
import subprocess
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from inaccfs.explore import Scenario, search
from inaccfs.explore.search import Case, Limits, ScenarioError, explore
from inaccfs.semantics import V10

if TYPE_CHECKING:
    from collections.abc import Callable

LIST: list[int] = []


class Mine(Scenario):
    """An actor does something, and another one punches."""

    number = 0

    def setup(self) -> None:
        self.fd = self.file(pages=1)
        self.one = self.vm()
        self.slot(self.one, self.fd)
        self.cpu = self.one.create_vcpu()
        self.io = self.iommu("nothing", self.fd, 1)
        self.list: list[object] = []
        self.dict = {"key": [1]}
        self.bytes = bytearray(4)
        self.box = SimpleNamespace(value=1)
        self.count = itertools.count()

    def actor_a(self) -> None:
        self.read(self.cpu, 0)
        type(self).does(self)

    def actor_b(self) -> None:
        self.punch(self.fd, 0, 1)

    @staticmethod
    def does(self: Mine) -> None:
        """The test replaces this."""


def explored(does: Callable[[Mine], object]) -> str:
    """The message of the explorer."""

    class Explored(Mine):
        pass

    Explored.does = staticmethod(does)  # type: ignore[assignment]
    with pytest.raises(ScenarioError) as caught:
        explore(Case(Explored, V10()), Limits(seconds=None))
    return str(caught.value)


def set_number(one: Mine) -> None:
    type(one).number += 1


@pytest.mark.parametrize(
    ("does", "name"),
    [
        (lambda one: one.list.append(1), "self.list"),
        (lambda one: one.dict["key"].append(2), "self.dict"),
        (lambda one: one.dict.update(other=[]), "self.dict"),
        (lambda one: one.bytes.extend(b"x"), "self.bytes"),
        (lambda one: setattr(one.box, "value", 2), "self.box"),
        (lambda one: next(one.count), "self.count"),
        (set_number, "Explored.number"),
        (lambda _: LIST.append(1), f"{__name__}.LIST"),
    ],
    ids=["list", "list in dict", "dict", "bytearray", "object", "iterator", *"cg"],
)
def test_what_actors_change_untracked_is_refused_by_name(
    does: Callable[[Mine], object], name: str
) -> None:
    assert f"an actor changes {name}, which" in explored(does)


def begin_and_end() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (lambda _: socket.socket(), "a: it makes sockets"),
        (lambda _: threading.Timer(0.2, int).start(), "it starts threads"),
        (lambda _: begin_and_end(), "a: it starts threads"),
        (lambda _: subprocess.run(["true"], check=True), "a: it starts processes"),
        (lambda _: os.system("true"), "a: it starts processes"),
    ],
    ids=["socket", "thread", "short thread", "process", "shell"],
)
def test_threads_sockets_and_processes_are_refused(
    does: Callable[[Mine], object], said: str
) -> None:
    assert said in explored(does)
    # Afterwards they are not.
    socket.socket().close()


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (lambda one: one.one.stats, "PageTable.count is shared"),
        (lambda one: one.one.runs(), "PageTable.copy is shared"),
        (lambda one: one.one.runs(0, 1), "PageTable.walked is shared"),
        (lambda one: one.one.client.query_pins(), "query_pins reads what"),
        (lambda one: one.file(pages=1), "an actor calls file(), which is for setup()"),
        (lambda one: one.vm(), "an actor calls vm(), which is for setup()"),
        (
            lambda one: one.io.map_file(one.fd, 4096, 4096),
            "an actor calls map_file(), which is for setup()",
        ),
        (lambda one: one.io.unmap(0, 4096), "calls unmap(), which is for setup()"),
    ],
    ids=["stats", "runs", "some runs", "pins", "file", "vm", "map_file", "unmap"],
)
def test_what_is_not_tracked_is_not_read_or_made(
    does: Callable[[Mine], object], said: str
) -> None:
    assert said in explored(does)


def test_always_may_wait_for_nobody() -> None:
    class Waits(Mine):
        def always(self) -> None:
            self.one.is_private(0)
            assert self.one.stats.faults < 100

    with pytest.raises(
        ScenarioError, match=r"always\(\) may wait for nobody, and takes"
    ):
        explore(Case(Waits, V10()), Limits(seconds=None))


def test_a_scenario_that_is_not_the_same_each_time_is_refused_with_the_step() -> None:
    dice = random.Random(3)

    def does(one: Mine) -> None:
        if dice.random() < 0.5:
            one.unmap(one.one, 0, 1)
        one.read(one.cpu, 0)

    said = explored(does)
    assert "step " in said
    assert " of a, " in said


def test_a_scenario_that_spins_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MOST_SECONDS", 0.3)

    def does(_: Mine) -> None:
        while True:
            pass

    assert "a schedule takes more than" in explored(does)


def test_a_scenario_without_an_end_is_refused() -> None:
    def does(one: Mine) -> None:
        while True:
            one.read(one.cpu, 0)

    assert "no end after 2000 steps" in explored(does)
