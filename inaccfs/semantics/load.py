"""Find the class for the argument of `--semantics`: a version, or a user's file.

`checking` checks the rules of a user's class. So mistakes are reported before there is
a mount, and not by the first punch.
"""

from __future__ import annotations

from inaccfs.errors import OptionError
from inaccfs.semantics import VERSIONS, checking
from inaccfs.semantics.rules import Semantics
from inaccfs.userfiles import UserFile, split
from inaccfs.words import choices, quoted


def check_name(wanted: str) -> None:
    """Check *wanted* as far as that is possible without running a file.

    Raises:
        OptionError: it is neither the name of a version nor that of a file.
    """
    names = [version.name for version in VERSIONS]
    if wanted in names or wanted.endswith(".py") or split(wanted) is not None:
        return
    which = choices(wanted, names, ", and your own as FILE.py:CLASS")
    raise OptionError(f"unknown semantics {quoted(wanted)}: {which}")


def load(wanted: str) -> Semantics:
    """The semantics of a name, or of FILE.py:CLASS; this runs the file.

    Raises:
        OptionError: there are no semantics of that name, or a rule is wrong.
    """
    check_name(wanted)
    for version in VERSIONS:
        if version.name == wanted:
            return version()
    path, name = split(wanted) or (wanted, None)
    file = UserFile("semantics", path)
    # Reading the class may run the user's code. Everything that it raises is handled
    # here. That includes KeyboardInterrupt, so that Ctrl-C shows the line of an endless
    # loop. os._exit() and its like cannot be caught.
    called = path
    try:
        file.run()
        called = wanted
        return checking.checked(_find(file, name), path)
    except OptionError:
        raise
    except BaseException as exc:
        raise OptionError(f"semantics {called}: {file.reason(exc)}") from exc


def _find(file: UserFile, name: str | None) -> type[Semantics]:
    if name is None:
        raise file.unnamed(Semantics)
    found = getattr(file.module, name, None)
    if isinstance(found, type) and issubclass(found, Semantics):
        return found
    if found is not None:
        raise OptionError(
            f"semantics {file.path}:{name} is not derived from "
            "inaccfs.semantics.Semantics, nor from a version such as "
            "inaccfs.semantics.V8"
        )
    raise file.lacks(name, Semantics)
