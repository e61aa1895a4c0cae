"""Parses the words of `inaccfs mount` into a `Config`."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from inaccfs.backing.options import TmpfsOptions, parse_size
from inaccfs.config import Config
from inaccfs.control.limits import Limits, Policy
from inaccfs.errors import OptionError
from inaccfs.fuse.mounting import FuseOptions
from inaccfs.shim.frameoptions import SimulatedMemory
from inaccfs.words import natural, quoted, seconds

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_TMPFS: Final = ("size", "huge", "mode", "uid", "gid")
_SIMULATED: Final = ("simulated-memory", "simulated-order", "simulated-fragmentation")
_OURS: Final = (
    *_TMPFS,
    *("backing", "control", "log", "trace"),
    *("pfn-source", *_SIMULATED),
    *("ack-timeout", "semantics"),
)
# These options may be repeated.
_REPEATED: Final = ("limit", "allow-uid")
NAMES: Final = (*_OURS, *_REPEATED)
"""Options of the daemon, which the kernel and mount(8) do not know."""

# (uid_t) -1 means no user; see chown(2).
_LARGEST_UID: Final = (1 << 32) - 2

PFN_SOURCES: Final = ("auto", "pagemap", "simulated")


class Options:
    """The options of a command line, in the same form for -o and for --."""

    def __init__(self) -> None:
        self.ours: dict[str, str] = {}
        self.repeated: list[tuple[str, str]] = []
        self.guest_access = True
        self.fuse: list[str] = []

    def take(self, words: Sequence[str]) -> None:
        """Add the options after each -o."""
        for option in filter(None, ",".join(words).split(",")):
            name, equals, value = option.partition("=")
            if equals and name in _OURS:
                self.ours[name] = value
            elif equals and name in _REPEATED:
                self.repeated.append((name, value))
            elif option == "no-guest-access":
                self.guest_access = False
            else:
                self.fuse.append(option)

    def check_values(self) -> None:
        """Raise `OptionError` if an option lacks its value."""
        for name, value in [*self.ours.items(), *self.repeated]:
            if not value:
                raise OptionError(
                    f"option {name} has no value: leave it out, or give one"
                )


def gather(args: argparse.Namespace) -> Options:
    options = Options()
    for name in _OURS:
        if (value := getattr(args, name.replace("-", "_"))) is not None:
            options.ours[name] = value
    for name in _REPEATED:
        for value in getattr(args, name.replace("-", "_")):
            options.repeated.append((name, value))
    options.guest_access = not args.no_guest_access
    options.take(args.options)
    if args.allow_other:
        options.fuse.append("allow_other")
    options.check_values()
    return options


def check(words: Sequence[str]) -> None:
    """Check the options after -o, for a mount that will be made with them later.

    Raises:
        OptionError: one is wrong.
    """
    options = Options()
    options.take(words)
    options.check_values()
    # Loading the semantics may run a file of the user's.
    _ = parse(options).rules


def _number(options: dict[str, str], name: str) -> int | None:
    text = options.get(name)
    if text is None:
        return None
    if (number := natural(text)) is None:
        raise OptionError(
            f"{name} {quoted(text)} is not a number: give one of decimal digits"
        )
    return number


def _mode(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"(0o)?[0-7]+", text) or int(text, 8) > 0o7777:
        raise OptionError(
            f"mode {quoted(text)} is not an octal mode: give one such as 0700"
        )
    return int(text, 8)


def parse(options: Options) -> Config:
    """Check the options; run no file of semantics.

    Raises:
        OptionError: one is wrong.
    """
    fuse = FuseOptions()
    for option in options.fuse:
        fuse.take(option)
    ours = options.ours
    if "backing" in ours and (clash := [name for name in _TMPFS if name in ours]):
        raise OptionError(
            f"--{clash[0]} is for the private tmpfs, --backing wraps what is there: "
            "leave one of them out"
        )
    tmpfs = TmpfsOptions(
        size=ours.get("size"),
        huge=ours.get("huge"),
        mode=_mode(ours.get("mode")),
        uid=_number(ours, "uid"),
        gid=_number(ours, "gid"),
    )
    source = ours.get("pfn-source", "auto")
    if source not in PFN_SOURCES:
        raise OptionError(
            f"pfn-source {quoted(source)} is not one of {', '.join(PFN_SOURCES)}"
        )
    log, trace = ours.get("log"), ours.get("trace")
    return Config(
        backing=ours.get("backing"),
        tmpfs=tmpfs,
        fuse=fuse,
        pfn_source=source,
        simulated=_simulated(ours),
        control=ours.get("control"),
        policy=_policy(options),
        semantics=_semantics(ours),
        log=None if log is None else os.path.abspath(log),
        trace=None if trace is None else os.path.abspath(trace),
    )


def _semantics(ours: dict[str, str]) -> str | None:
    wanted = ours.get("semantics")
    if wanted is not None:
        # Imported here because the check of rules would slow down every start.
        from inaccfs.semantics import load

        load.check_name(wanted)
    return wanted


def _simulated(ours: dict[str, str]) -> SimulatedMemory:
    source = ours.get("pfn-source", "auto")
    given = [name for name in _SIMULATED if name in ours]
    if given and source != "simulated":
        raise OptionError(
            f"--{given[0]} is for --pfn-source simulated: give both, or neither"
        )
    plain = SimulatedMemory()
    size = ours.get("simulated-memory")
    order = _number(ours, "simulated-order")
    fragmentation = _number(ours, "simulated-fragmentation")
    return SimulatedMemory(
        size=plain.size if size is None else parse_size("simulated-memory", size),
        order=plain.order if order is None else order,
        fragmentation=plain.fragmentation if fragmentation is None else fragmentation,
    )


def _policy(options: Options) -> Policy:
    limits = Limits()
    uids: set[int] = set()
    for name, value in options.repeated:
        if name == "limit":
            limits = limits.changed(value)
        else:
            uid = _number({name: value}, name)
            assert uid is not None
            if uid > _LARGEST_UID:
                raise OptionError(
                    f"allow-uid {uid}: no user has that number: give {_LARGEST_UID} "
                    "or less"
                )
            uids.add(uid)
    policy = Policy(limits, frozenset(uids), options.guest_access)
    if (text := options.ours.get("ack-timeout")) is None:
        return policy
    if (ack_seconds := seconds(text)) is None:
        raise OptionError(
            f"ack-timeout {quoted(text)} is not a number of seconds: give one above 0"
        )
    return replace(policy, ack_seconds=ack_seconds)
