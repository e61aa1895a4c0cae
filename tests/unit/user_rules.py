"""A user's file of rules, and what the loader says of it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pytest

from inaccfs.errors import OptionError
from inaccfs.semantics import load

if TYPE_CHECKING:
    from pathlib import Path


PAGE = 4096
IMPORTS = """\
import errno
from inaccfs.semantics import *
from inaccfs.semantics.rules import *
"""


def written(directory: Path, text: str, name: str = "mine.py") -> str:
    """The path of a user's file with *text*."""
    path = directory / name
    path.write_text(IMPORTS + textwrap.dedent(text))
    return str(path)


def complaint(wanted: str) -> str:
    """The loader's error message, which is one line."""
    with pytest.raises(OptionError) as caught:
        load.load(wanted)
    message = str(caught.value)
    assert message
    assert message.isprintable(), message
    return message


def complaint_of(directory: Path, body: str, base: str = "V8") -> str:
    """The error message for a class with this body."""
    body = textwrap.indent(textwrap.dedent(body).strip() or "pass", "    ")
    wanted = written(directory, f"class Mine({base}):\n{body}\n")
    return complaint(f"{wanted}:Mine")
