"""The notifiers of one peer: registered for files, or bound to ranges."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from inaccfs.control import messages
from inaccfs.control.messages import Command, Nothing
from inaccfs.control.registration import Registration

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from inaccfs.control.caller import Caller
    from inaccfs.control.context import Context
    from inaccfs.control.fdnames import FdNames
    from inaccfs.control.outlet import Outbound
    from inaccfs.semantics.rules import Scope
    from inaccfs.shim.slices import Slices


class Notifying:
    """The notifiers of one peer. Commands raise `OSError`, for the peer."""

    def __init__(
        self, context: Context, caller: Caller, names: FdNames, outlet: Outbound
    ) -> None:
        self._context: Final = context
        self._caller: Final = caller
        self._names: Final = names
        self._outlet: Final = outlet
        # The peer's notifiers, by number. `Context.notifiers` has those of all peers.
        self._registered: Final[dict[int, Registration]] = {}
        # By number: the functions that bind prepared notifiers.
        self._prepared: Final[dict[int, Callable[[Registration], Awaitable[None]]]] = {}
        # Whether the peer can answer no more events.
        self._is_silent = False

    def handlers(self) -> dict[type[Command], Callable[[Any], Any]]:
        """The handler of each command."""
        return {
            messages.RegisterNotifier: self._register_notifier,
            messages.UnregisterNotifier: self._unregister_notifier,
            messages.Bind: self._bind,
            messages.CommitBind: self._commit_bind,
            messages.Unbind: self._unbind,
            messages.InvalidateDone: self._invalidate_done,
        }

    def silence(self) -> None:
        """Stop waiting for the peer, which will not answer any more."""
        self._is_silent = True
        for registration in self._registered.values():
            registration.opened.file.notifiers.silence(registration)

    async def close(self, slices: Slices) -> None:
        """Unregister the peer's notifiers. It has disconnected."""
        while self._registered:
            registration = next(iter(self._registered.values()))
            self._forget(registration)
            registration.opened.file.notifiers.drop(registration)
            registration.opened.close()
            await slices.give()

    def _forget(self, registration: Registration) -> bool:
        """Remove a notifier from both tables; False if it was removed before."""
        self._context.notifiers.pop(registration.number, None)
        self._prepared.pop(registration.number, None)
        return self._registered.pop(registration.number, None) is not None

    # --- registering -----------------------------------------------------------------

    async def _register_notifier(
        self, command: messages.RegisterNotifier
    ) -> messages.Notifier:
        self._check_scope("file")

        async def register(registration: Registration) -> None:
            await registration.opened.file.notifiers.register(registration)

        return await self._add(command.file, register)

    async def _bind(self, command: messages.Bind) -> messages.Notifier:
        rules = self._context.superblock.semantics
        self._check_scope("range")
        if command.start >= command.end:
            raise OSError(
                errno.EINVAL,
                f"no pages from {command.start} to {command.end}: the end is the page "
                "after the last",
            )
        if command.prepare and not rules.has_commit_bind:
            raise OSError(
                errno.EOPNOTSUPP, "bindings take effect at once in these semantics"
            )
        exclusive = rules.exclusive if command.exclusive is None else command.exclusive
        if rules.exclusive and not exclusive:
            raise OSError(errno.EINVAL, "ranges are exclusive in these semantics")

        async def bind(registration: Registration) -> None:
            await registration.opened.file.notifiers.bind(
                registration, command.start, command.end, exclusive=exclusive
            )

        async def check(registration: Registration) -> None:
            file = registration.opened.file
            if file.ends_before(command.end * file.page_size):
                raise OSError(errno.EINVAL, "the range ends past the file's end")
            if command.prepare:
                self._prepared[registration.number] = bind
            else:
                await bind(registration)

        return await self._add(command.file, check, (command.start, command.end))

    async def _commit_bind(self, command: messages.CommitBind) -> Nothing:
        bind = self._prepared.pop(command.notifier, None)
        if bind is None:
            raise OSError(
                errno.ENOENT, f"this peer has not prepared notifier {command.notifier}"
            )
        await self._register(self._registered[command.notifier], bind)
        return Nothing()

    async def _add(
        self,
        name: str,
        register: Callable[[Registration], Awaitable[None]],
        pages: tuple[int, int] | None = None,
    ) -> messages.Notifier:
        self._check_room()
        opened = self._names.open(name)
        context = self._context
        number = next(context.notifier_numbers)
        registration = Registration(
            self._caller,
            number,
            opened,
            self._outlet,
            context.policy.ack_seconds,
            pages,
        )
        # Do this before `register`, so that it is removed if the peer disconnects
        # meanwhile.
        self._registered[number] = context.notifiers[number] = registration
        await self._register(registration, register)
        return messages.Notifier(notifier=number)

    async def _register(
        self,
        registration: Registration,
        register: Callable[[Registration], Awaitable[None]],
    ) -> None:
        try:
            await register(registration)
        except OSError:
            if self._forget(registration):
                registration.opened.close()
            raise
        if registration.number not in self._registered:
            registration.opened.file.notifiers.drop(registration)

    def _check_room(self) -> None:
        if self._is_silent:
            raise OSError(errno.ESHUTDOWN, "nobody is left to answer events")
        limits = self._context.policy.limits
        if len(self._registered) >= limits.notifiers:
            raise OSError(
                errno.EDQUOT,
                f"{limits.notifiers} notifiers are registered (--limit notifiers=N)",
            )
        if len(self._context.notifiers) >= limits.total_notifiers:
            raise OSError(
                errno.EDQUOT,
                f"all peers have {limits.total_notifiers} notifiers "
                "(--limit total_notifiers=N)",
            )

    def _check_scope(self, scope: Scope) -> None:
        """Raise `OSError` unless notifiers are for a file, or for a range."""
        if self._context.superblock.semantics.scope == scope:
            return
        raise OSError(
            errno.EOPNOTSUPP,
            "notifiers are registered for files in these semantics: use "
            "register-notifier and unregister-notifier"
            if scope == "range"
            else "notifiers are bound to ranges in these semantics: use bind, unbind",
        )

    # --- registered ------------------------------------------------------------------

    def _find(self, number: int) -> Registration:
        registration = self._registered.get(number)
        if registration is None:
            raise OSError(errno.ENOENT, f"this peer has no notifier {number}")
        return registration

    def _invalidate_done(self, command: messages.InvalidateDone) -> Nothing:
        registration = self._find(command.notifier)
        registration.opened.file.notifiers.answer(registration, command.sequence)
        return Nothing()

    async def _unregister_notifier(
        self, command: messages.UnregisterNotifier
    ) -> Nothing:
        self._check_scope("file")
        return await self._remove(command.notifier)

    async def _unbind(self, command: messages.Unbind) -> Nothing:
        self._check_scope("range")
        return await self._remove(command.notifier)

    async def _remove(self, number: int) -> Nothing:
        registration = self._find(number)
        await registration.opened.file.notifiers.unregister(registration)
        if self._forget(registration):
            registration.opened.close()
        return Nothing()
