"""The state machines of tests/unit, run for longer.

tests/unit runs a few examples of each in about a second. Here their number grows with
the minutes. A run of the same length tries the same examples again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.hard import budget
from tests.unit.test_buddy import AnyOrder
from tests.unit.test_namespace_model import Histories
from tests.unit.test_references import EachPage

if TYPE_CHECKING:
    from hypothesis.stateful import RuleBasedStateMachine

# The number of examples for each minute. An example takes some five seconds.
EXAMPLES: Final[dict[type[RuleBasedStateMachine], int]] = {
    Histories: 100,
    EachPage: 120,
    AnyOrder: 150,
}


@pytest.mark.parametrize("machine", EXAMPLES, ids=lambda machine: machine.__name__)
def test_it_is_as_its_model_says(machine: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=budget.times(EXAMPLES[machine]),
            stateful_step_count=60,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
