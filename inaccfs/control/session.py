"""One peer: its commands, names, notifiers and references to pages."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

import trio

from inaccfs.control import messages, queries
from inaccfs.control.fdnames import FdNames
from inaccfs.control.memoryattributes import MemoryAttributes
from inaccfs.control.messages import Command, Nothing
from inaccfs.control.notifying import Notifying
from inaccfs.control.pagepins import PagePins
from inaccfs.control.pagerefs import PageHolder, PageReferences, PageRoom
from inaccfs.control.request import Answer, Request
from inaccfs.control.tracing import Tracing
from inaccfs.shim.memory import Pinner
from inaccfs.shim.slices import Slices

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.control.caller import Caller
    from inaccfs.control.context import Context
    from inaccfs.control.outlet import Outbound


class Session:
    """Executes the commands of one peer. It knows nothing about sockets."""

    def __init__(self, context: Context, caller: Caller, outlet: Outbound) -> None:
        """Events go to *outlet*; the caller of `execute` sends the replies."""
        self._context: Final = context
        self._is_owner: Final = caller.is_owner
        self._number: Final = caller.number
        # Whether qmp_capabilities was executed. No other command may come before it.
        self.negotiated = False
        self._names: Final = FdNames(context, caller)
        self._notifying: Final = Notifying(context, caller, self._names, outlet)
        policy, names = context.policy, self._names
        holder = PageHolder(caller, outlet, policy.ack_seconds)
        self.page_room: Final = PageRoom(policy.limits.pages)
        self._references: Final = PageReferences(
            context,
            names,
            holder,
            self.page_room,
            keeps=context.superblock.semantics.keeps_references,
        )
        self._pins: Final = PagePins(context, names, Pinner(holder), self.page_room)
        self._attributes: Final = MemoryAttributes(caller, self._names)
        self._tracing: Final = Tracing(context, outlet)
        self._handlers: Final[dict[type[Command], Callable[[Any], Any]]] = {
            messages.QmpCapabilities: self._negotiate,
            messages.Quit: self._quit,
            **queries.handlers(context),
            **self._names.handlers(),
            **self._notifying.handlers(),
            **self._references.handlers(),
            **self._pins.handlers(),
            **self._attributes.handlers(),
            **self._tracing.handlers(),
        }
        context.callers[caller.number] = caller

    def execute(self, request: Request) -> Any:  # noqa: ANN401
        """Execute a command; returns its value or `Answer`, or a coroutine of one.

        Raises:
            OSError: the command is refused.
        """
        command = request.command
        kind = type(command)
        if kind.owner_only and not self._is_owner:
            raise OSError(
                errno.EPERM, f"{kind.name} is for root and the mount's owner only"
            )
        return self._handlers[kind](request if kind.takes_fd else command)

    def silence(self) -> None:
        """Stop waiting for the peer, which will not answer events any more."""
        self._notifying.silence()

    async def close(self) -> None:
        """Release all resources of the peer. It has disconnected."""
        self.silence()
        self._tracing.stop()
        slices = Slices()
        # Complete this even if the daemon ends: open files have to be closed.
        with trio.CancelScope(shield=True):
            self._names.close()
            self._attributes.close()
            await self._notifying.close(slices)
            await self._references.close(slices)
            await self._pins.close(slices)
        del self._context.callers[self._number]

    def _negotiate(self, command: messages.QmpCapabilities) -> Nothing:
        self.negotiated = True
        return Nothing()

    def _quit(self, command: messages.Quit) -> Answer:
        # Quit after the reply, which is the last message that this loop sends.
        return Answer(Nothing(), after=self._context.actions.quit)
