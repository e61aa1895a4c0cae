"""Commands with each kind of standard streams: tests/mount has two kinds for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.hard.budget import some
from tests.mount import support, test_streams
from tests.mount.test_streams import COMMANDS, STATES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hard.census import Ground
    from tests.mount.test_streams import Command


@pytest.mark.parametrize("command", some(COMMANDS, 2), ids=lambda each: each[0])
def test_a_command_ends_with_every_kind_of_streams(
    ground: Ground, point: Path, command: Command
) -> None:
    with support.mounted(point) as mount:
        test_streams.check(mount, ground.path, command, list(STATES))
    (ground.path / "script.py").unlink()
