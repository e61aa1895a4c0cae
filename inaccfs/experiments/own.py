"""Experiments of the user: FILE.py:CLASS in place of a name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inaccfs.errors import InaccfsError, OptionError
from inaccfs.experiments import catalogue
from inaccfs.experiments.lab import Experiment
from inaccfs.userfiles import UserFile, split

if TYPE_CHECKING:
    from inaccfs.experiments.lab import Lab


class ExperimentError(InaccfsError):
    """The file or the class of an experiment raises."""


def find(wanted: str) -> Experiment:
    """The experiment of a name, or of FILE.py:CLASS; this runs the file.

    The class needs no base: it has `question`, a sentence; `run(lab)`; and, unless
    every run names them, `semantics`, the names of the rules that it runs on. `draws`
    is True if it calls `Lab.draw`.

    Raises:
        OptionError: there is no experiment of that name, or the class lacks something.
        ExperimentError: the file, or making an object of the class, raises.
    """
    parts = split(wanted)
    if parts is None:
        if wanted.endswith(".py"):
            raise OptionError(
                f"experiment {wanted}: name the class, too: {wanted}:CLASS"
            )
        return catalogue.find(wanted)
    path, name = parts
    file = UserFile("experiment", path)
    try:
        file.run()
        found = vars(file.module).get(name)
        made = found() if isinstance(found, type) else None
    except KeyboardInterrupt:
        raise
    except BaseException as exc:
        raise ExperimentError(f"experiment {wanted}: {file.reason(exc)}") from exc
    if made is None:
        raise file.lacks(name)
    return _checked(made, wanted, name)


def _checked(found: object, wanted: str, name: str) -> Experiment:
    question = getattr(found, "question", None)
    if not isinstance(question, str) or not question:
        raise OptionError(f"experiment {wanted}: set `question` to a sentence")
    if not callable(getattr(found, "run", None)):
        raise OptionError(f"experiment {wanted}: give it a method `run(self, lab)`")
    semantics = getattr(found, "semantics", ("v8",))
    if not isinstance(semantics, list | tuple) or not all(
        isinstance(one, str) for one in semantics
    ):
        raise OptionError(
            f"experiment {wanted}: set `semantics` to a tuple of names, as --semantics "
            "has them"
        )

    def run(lab: Lab) -> None:
        found.run(lab)  # type: ignore[attr-defined]

    return Experiment(
        name,
        question,
        run,
        tuple(semantics),
        exact=False,
        draws=bool(getattr(found, "draws", False)),
        misfits=(),
    )
