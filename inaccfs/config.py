"""`Config`: the checked options of `inaccfs mount`.

This imports neither trio nor pyfuse3: the command checks the options, too, and then
leaves the mount to a daemon.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from inaccfs.backing.options import TmpfsOptions
from inaccfs.control.limits import Policy
from inaccfs.fuse.mounting import FuseOptions
from inaccfs.semantics import V8, Semantics
from inaccfs.shim.frameoptions import SimulatedMemory


@dataclass
class Config:
    """How to make a mount. `cli.mountoptions` makes it from the options."""

    # A directory to wrap; None for a private tmpfs made with `tmpfs`.
    backing: str | None = None
    tmpfs: TmpfsOptions = field(default_factory=TmpfsOptions)
    fuse: FuseOptions = field(default_factory=FuseOptions)
    # Where page frame numbers come from: "auto", "pagemap" or "simulated".
    pfn_source: str = "auto"
    simulated: SimulatedMemory = field(default_factory=SimulatedMemory)
    # The path of the control socket; None for one whose name is made from the
    # mountpoint.
    control: str | None = None
    policy: Policy = field(default_factory=Policy)
    # The name of a version, or FILE.py:CLASS; None for v8.
    semantics: str | None = None
    # The absolute paths of the log, and of the file for a trace from the start.
    log: str | None = None
    trace: str | None = None

    @cached_property
    def rules(self) -> Semantics:
        """The semantics themselves.

        The first access runs the file of a user's class; later ones do not.

        Raises:
            OptionError: a rule is wrong.
        """
        if self.semantics is None:
            return V8()
        # Imported here because the check of rules would slow down every start.
        from inaccfs.semantics import load

        return load.load(self.semantics)
