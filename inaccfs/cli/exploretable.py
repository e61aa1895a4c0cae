"""The table of `inaccfs explore`, a row for each version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from inaccfs.explore.search import Outcome


class Table:
    """Lines for people."""

    def __init__(self, label: str, kvm: str, names: list[str]) -> None:
        """*label* names the scenario; *names* are those of all rows, for the widths."""
        self._label: Final = label
        self._kvm: Final = kvm
        self._widths: Final = [
            max(len("scenario"), len(label)),
            max(map(len, ["semantics", *names])),
            max(len("KVM"), len(kvm)),
        ]
        self.head: Final = self._line(
            "scenario",
            "semantics",
            "KVM",
            "schedules",
            "pruned",
            "all",
            "seconds",
            "verdict",
        )

    def _line(
        self,
        scenario: str,
        semantics: str,
        kvm: str,
        schedules: object,
        pruned: object,
        complete: str,
        seconds: str,
        verdict: str,
    ) -> str:
        first, second, third = self._widths
        return (
            f"{scenario:<{first}}  {semantics:<{second}}  {kvm:<{third}}  "
            f"{schedules:>9}  {pruned:>6}  {complete:<6}  {seconds:>7}  {verdict}"
        )

    def row(self, name: str, outcome: Outcome) -> str:
        """The row of one version."""
        verdict = ", ".join(outcome.kinds) or (
            "clean" if outcome.complete else "clean so far"
        )
        if outcome.calls.always_refused:
            verdict += ", but calls are always refused"
        if (same := outcome.case.semantics.name) != name:
            verdict += f" (as {same})"
        return self._line(
            self._label,
            name,
            self._kvm,
            outcome.schedules,
            outcome.pruned,
            _all(outcome),
            f"{outcome.seconds:.2f}",
            verdict,
        )

    def refused(self, name: str, why: str) -> str:
        """For a version whose rules refuse what the scenario needs."""
        return self._line(
            self._label, name, self._kvm, "-", "-", "-", "-", f"refused: {why}"
        )


def _all(outcome: Outcome) -> str:
    if not outcome.complete:
        return "no"
    bound = outcome.limits.preemptions
    return "yes" if bound is None else f"<={bound}"
