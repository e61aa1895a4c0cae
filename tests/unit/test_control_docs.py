"""docs/control-protocol.md says what the code does."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from inaccfs import cli
from inaccfs.backing.options import parse_size
from inaccfs.control import qmp, reference
from inaccfs.control.limits import Limits, Policy
from inaccfs.control.messages import COMMANDS, EVENTS
from inaccfs.shim.frameoptions import SimulatedMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[2] / "docs" / "control-protocol.md"
MAKE = "run: .venv/bin/python -m inaccfs.control.reference docs/control-protocol.md"


@pytest.fixture
def text() -> str:
    return PAGE.read_text(encoding="utf-8")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def rows(text: str, title: str) -> Iterator[list[str]]:
    """The lines of the first table whose first column has this title."""
    _, found, rest = text.partition(f"\n| {title} | ")
    assert found
    for line in rest.splitlines()[2:]:
        if not line.startswith("|"):
            return
        yield cells(line)


# --- the generated part --------------------------------------------------------------


def test_the_reference_is_that_of_the_message_types(text: str) -> None:
    assert text == reference.update(text), MAKE


def test_the_reference_is_printed(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reference.main([]) == 0
    printed = capsys.readouterr().out
    assert f"{reference.BEGIN}\n\n{printed}\n{reference.END}\n" in text, MAKE


def test_a_stale_reference_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{reference.BEGIN}\nstale\n{reference.END}\nafter\n")
    assert reference.main([str(page)]) == 0
    begin, end = f"before\n{reference.BEGIN}\n\n", f"\n{reference.END}\nafter\n"
    assert page.read_text() == begin + reference.render() + end


@pytest.mark.parametrize(
    "page", ["", f"{reference.BEGIN}\n", f"{reference.END}\n{reference.BEGIN}\n"]
)
def test_a_page_without_the_marks_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="needs a line"):
        reference.update(page)


# An event that has the name of a command: its heading is the second one.
ANCHORS = {"POPULATE": "populate-1"}


def test_each_command_and_event_has_a_row_and_a_heading() -> None:
    made = reference.render()
    for title, names in (("command", COMMANDS), ("event", EVENTS)):
        assert [row[0] for row in rows(made, title)] == [
            f"[`{name}`](#{ANCHORS.get(name, name.lower())})" for name in names
        ]
        for name in names:
            assert f"\n### `{name}`\n" in made


def row(name: str, title: str = "command") -> list[str]:
    (found,) = (
        line for line in rows(reference.render(), title) if f"`{name}`" in line[0]
    )
    return found


def test_a_row_has_arguments_returns_and_errors_of_a_command() -> None:
    assert row("memfd-create")[1:] == [
        "`name`, [`flags`], `fdname`, [`size`]",
        *("`{}`", "returned", "all", "EINVAL"),
    ]
    assert row("getfd")[3] == "sent"
    assert row("get-memory")[4:] == ["root, owner", "EPERM"]
    assert row("query-files")[1:3] == [
        "[`start`], [`limit`]",
        "array of [FileInfo](#fileinfo)",
    ]


def test_members_are_listed_with_type_default_and_meaning() -> None:
    _, _, get_pfn = reference.render().partition("\n### `get-pfn`\n")
    members = list(rows(get_pfn, "argument"))
    assert members[1] == ["`offset`", "int, 0 to 2^51 - 1", "", "a page of the file"]
    assert members[2] == ["`count`", "int, 1 to 2^51 - 1", "left out", "how many pages"]


def test_results_are_listed_member_by_member() -> None:
    _, _, info = reference.render().partition("\n### NotifierInfo\n")
    members = list(rows(info, "member"))
    assert members[-1][:2] == ["`waiting`", "int or null"]
    assert all(meaning for *_, meaning in members[-2:])


# --- the page as a whole ------------------------------------------------------------


def test_links_lead_somewhere(text: str) -> None:
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors: list[str] = []
    for each in headings:
        anchor = re.sub(r"[^\w -]", "", each).lower().replace(" ", "-")
        # As GitHub numbers headings of the same name.
        anchors.append(ANCHORS["POPULATE"] if anchor in anchors else anchor)
    assert len(anchors) == len(set(anchors))
    links = re.findall(r"\]\(#([^)]*)\)", text)
    assert set(links) <= set(anchors)


def test_the_limits_are_those_of_the_code(text: str) -> None:
    documented = {
        name.strip("`"): int(default) for name, default, *_ in rows(text, "limit")
    }
    assert documented == asdict(Limits())


def options(text: str) -> dict[str, tuple[str, str]]:
    """Each option's default, and the metavar after its name."""
    documented = {}
    for words, default, _ in rows(text, "option"):
        name, _, value = words.strip("`").partition(" ")
        documented[name] = default, value.replace("\\|", "|")
    return documented


def test_the_defaults_of_options_are_those_of_the_code(text: str) -> None:
    defaults = {name: default for name, (default, _) in options(text).items()}
    assert float(defaults["--ack-timeout"]) == Policy().ack_seconds
    assert SimulatedMemory() == SimulatedMemory(
        size=parse_size("size", defaults["--simulated-memory"]),
        order=int(defaults["--simulated-order"]),
        fragmentation=int(defaults["--simulated-fragmentation"]),
    )


@pytest.fixture
def usage(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The help texts of the options."""
    monkeypatch.setenv("COLUMNS", "200")
    for command in ("mount", "qmp"):
        with pytest.raises(SystemExit, match="0"):
            cli.main([command, "--help"])
    return capsys.readouterr().out


def test_the_options_are_those_of_the_command(text: str, usage: str) -> None:
    for name, (_, value) in options(text).items():
        assert f"\n  {name} {value}".rstrip() in usage


def test_every_option_that_is_named_is_one(text: str, usage: str) -> None:
    names = set(re.findall(r"`(--[a-z-]+)", text))
    assert names <= set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", usage, re.MULTILINE))
    assert names >= {"--control", "--allow-uid", "--watch"}


def messages(text: str) -> list[bytes]:
    """The messages that the page shows."""
    return [
        line.encode() for line in re.findall(r"^    (\{\".*\})$", text, re.MULTILINE)
    ]


def test_lines_of_clients_in_the_page_are_commands(text: str) -> None:
    sent = [line for line in messages(text) if line.startswith(b'{"execute"')]
    assert len(sent) > 2
    for line in sent:
        qmp.decode_request(line)


def test_lines_of_the_daemon_in_the_page_can_be_read(text: str) -> None:
    received = [line for line in messages(text) if not line.startswith(b'{"execute"')]
    kinds = {type(qmp.decode_incoming(line)).__name__ for line in received}
    assert kinds == {"Greeting", "Reply", "Invalidate"}
