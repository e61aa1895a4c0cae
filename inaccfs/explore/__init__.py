"""All schedules of the shim and the simulated KVM: see docs/exploring.md.

from inaccfs.explore import Scenario
"""

from __future__ import annotations

from inaccfs.explore.pytesting import assert_clean
from inaccfs.explore.scenario import Scenario

__all__ = ["Scenario", "assert_clean"]
