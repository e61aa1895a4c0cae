"""The list of all experiments."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Final

from inaccfs.errors import OptionError

if TYPE_CHECKING:
    from inaccfs.experiments.lab import Experiment

# Each is a module here, and a page in docs/experiments/.
NAMES: Final = (
    "size",
    "order",
    "lock",
    "references",
    "payload",
    "content",
    "poison",
    "errnos",
    "compaction",
    "allocation",
    "folios",
    "alignment",
    "bindings",
    "dma",
    "populate",
    "stored",
    "pins",
    "holding",
    "split",
    "freeze",
    "slots",
    "hooks",
    "link",
    "population",
    "postcopy",
    "placement",
    "provider",
)


def find(name: str) -> Experiment:
    """The experiment called *name*.

    Raises:
        OptionError: there is none.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise OptionError(f"no experiment {name!r}: {hint}There are {', '.join(NAMES)}")
    module = importlib.import_module(f"inaccfs.experiments.{name}")
    found: Experiment = module.EXPERIMENT
    return found
