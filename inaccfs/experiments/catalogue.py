"""The list of all experiments."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from inaccfs.errors import OptionError
from inaccfs.words import choices, quoted

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
        which = choices(name, NAMES, ", and your own as FILE.py:CLASS")
        raise OptionError(f"unknown experiment {quoted(name)}: {which}")
    module = importlib.import_module(f"inaccfs.experiments.{name}")
    found: Experiment = module.EXPERIMENT
    return found
