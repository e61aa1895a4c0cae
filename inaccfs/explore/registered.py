"""A notifier that a VM has registered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from inaccfs.inprocess import Notifier


class Registered:
    """A notifier of a VM. See `inaccfs.kvm.shim.ShimNotifier`."""

    def __init__(self, client: Any, notifier: Notifier) -> None:  # noqa: ANN401 - an ExploredClient
        self._client: Final = client
        self._notifier: Final = notifier

    @property
    def registered(self) -> bool:
        """See `ShimNotifier`."""
        self._client.connected()
        return self._notifier.registered

    def unregister(self) -> None:
        """See `ShimNotifier`."""
        schedule = self._client.schedule
        if not self._client.unregisters:
            return
        schedule.point("unregisters")
        self._client.connected(write=True)
        self._client.running()
        self._notifier.unregister()
        self._client.running()
