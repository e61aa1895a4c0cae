"""docs/client.md: its programs print what the page shows, and the C client works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from tests.mount import raw, support
from tests.mount.support import PAGE, TOP, opened

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs import Mount

pytestmark = [pytest.mark.fuse, support.needs_root]

TEXT: Final = (TOP / "docs" / "client.md").read_text()

PROGRAMS: Final = re.findall(
    r"^```python\n(.*?)^```\n.*?^```\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL
)


def test_each_program_has_an_output() -> None:
    assert len(PROGRAMS) == TEXT.count("```python") == 4


@pytest.mark.parametrize(("program", "output"), PROGRAMS)
def test_a_program_says_what_the_page_says(program: str, output: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=support.ENVIRONMENT,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", output)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C client, compiled."""
    compiler = shutil.which("cc") or pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("client") / "client"
    source = TOP / "docs" / "client.c"
    assert len(source.read_text().splitlines()) <= 150
    warnings = ("-Wall", "-Wextra", "-Werror", "-O2")
    subprocess.run([compiler, *warnings, "-o", path, source], check=True)
    return path


@pytest.mark.parametrize("semantics", ["v8", "v7", "v10"])
def test_the_c_client_answers_events(program: Path, semantics: str) -> None:
    with (
        support.mounted(semantics=semantics) as mount,
        opened(mount.path / "guest", os.O_CREAT | os.O_RDWR) as fd,
    ):
        os.ftruncate(fd, 16 * PAGE)
        client = subprocess.Popen(
            [program, mount.path, "/guest"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert client.stdout is not None
        frame = client.stdout.readline()
        raw.fallocate(fd, 0, 0, PAGE)
        raw.punch(fd, 2 * PAGE, PAGE)
    # The mount has ended, and so does the client.
    out, err = client.communicate(timeout=support.PATIENCE)
    assert re.fullmatch(r"page 0 is frame \d+\n", frame)
    assert (client.returncode, err) == (0, "client: the mount has ended\n")
    expected = {
        "v7": ["0 to 1 go", "2 to 3 go"],
        "v8": ["0 to 1 go", "2 to 3 go"],
        "v10": ["2 to 3 go", "2 to 3 go"],
    }
    assert out.splitlines() == expected[semantics]


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        ((), 2, "usage: client MOUNTPOINT /FILE"),
        (("/nowhere", "/guest"), 1, "/nowhere/guest: No such file or directory"),
        (("/etc", "/passwd"), 1, "/etc: "),
    ],
)
def test_the_c_client_says_what_is_wrong(
    program: Path, words: tuple[str, ...], status: int, text: str
) -> None:
    done = subprocess.run(
        [program, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert text in done.stderr


def test_the_c_client_prints_a_refusal(program: Path, mount: Mount) -> None:
    """An empty file has no page 0."""
    (mount.path / "empty").touch()
    done = subprocess.run(
        [program, mount.path, "/empty"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "EINVAL: offset 0 lies past the end" in done.stderr
