"""What one peer may do and has done: its fdnames, notifiers and references."""

from __future__ import annotations

import errno
import os
from contextlib import AbstractContextManager, closing, nullcontext
from typing import TYPE_CHECKING, Any, Final

import trio

from inaccfs.control import messages, queries
from inaccfs.control.messages import Command, Nothing
from inaccfs.control.pagerefs import PageReferences
from inaccfs.control.peer import Answer, Peer, Request
from inaccfs.control.registration import Registration
from inaccfs.shim.turns import Turns

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from inaccfs.control.openfiles import OpenFile
    from inaccfs.control.server import Server
    from inaccfs.semantics.rules import Scope


class Session:
    """One connected peer."""

    def __init__(
        self,
        server: Server,
        connection: socket.socket,
        number: int,
        pid: int,
        uid: int,
        gid: int,
    ) -> None:
        self.server: Final = server
        self.number: Final = number
        self.pid: Final = pid
        self._uid: Final = uid
        self._gid: Final = gid
        # Root and the mount's owner, which is the daemon's user.
        self._is_owner: Final = uid in (0, os.geteuid())
        self.peer: Final = Peer(
            connection,
            server,
            f"peer {number} (pid {pid}, uid {uid})",
            uid,
            self._execute,
            self._silenced,
        )
        self._fdnames: Final[dict[str, OpenFile]] = {}
        self.notifiers: Final[dict[int, Registration]] = {}
        # Whether the peer can answer no events any more.
        self._is_silent = False
        self.references: Final = PageReferences(self)
        self._commands: Final = self._make_commands()

    def _make_commands(self) -> dict[type[Command], Callable[[Any], Any]]:
        """What carries out each command: given it, or all of the request."""
        return {
            messages.QmpCapabilities: self._negotiate,
            messages.QueryVersion: lambda _: messages.version(),
            messages.QueryCommands: lambda _: [
                messages.CommandInfo(name) for name in messages.COMMANDS
            ],
            messages.QueryQmpSchema: lambda _: queries.schema(),
            messages.QueryStatus: lambda _: self.server.actions.status(),
            messages.GetFd: self._getfd,
            messages.CloseFd: self._closefd,
            messages.MemfdCreate: self._memfd_create,
            messages.RegisterNotifier: self._register_notifier,
            messages.UnregisterNotifier: self._unregister_notifier,
            messages.Bind: self._bind,
            messages.Unbind: self._unbind,
            messages.InvalidateDone: self._invalidate_done,
            messages.GetPfn: self.references.get_pfn,
            messages.PutPfn: self.references.put_pfn,
            messages.GetMemory: self._get_memory,
            messages.QueryFiles: lambda command: queries.files(self.server, command),
            messages.QueryFile: self._query_file,
            messages.QueryNotifiers: lambda command: queries.notifiers(
                self.server, command
            ),
            messages.QueryPins: lambda command: queries.pins(self.server, command),
            messages.QueryStats: lambda _: queries.stats(self.server),
            messages.QuerySemantics: lambda _: queries.semantics(
                self.server.shim.semantics
            ),
            messages.MemoryFailure: self._memory_failure,
            messages.Quit: self._quit,
        }

    # --- life ----------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the peer, and take back all that it had when it has gone."""
        try:
            await self.peer.converse()
        finally:
            self._silenced()
            # To its end, though the daemon may end: what is open is to be closed.
            with trio.CancelScope(shield=True):
                await self._let_go()

    async def _let_go(self) -> None:
        turns = Turns()
        while self._fdnames:
            self._fdnames.popitem()[1].close()
        while self.notifiers:
            _, registration = self.notifiers.popitem()
            registration.opened.file.notifiers.drop(registration)
            registration.opened.close()
            await turns.give()
        await self.references.drop(turns)

    def _silenced(self) -> None:
        """The peer will not answer any more: nobody may wait for it."""
        self._is_silent = True
        for registration in self.notifiers.values():
            registration.opened.file.notifiers.silence(registration)

    @property
    def who(self) -> int:
        """See `inaccfs.shim.memory.Holder`."""
        return self.number

    def evict_holder(self) -> None:
        """It keeps pages locked that others wait for."""
        self.peer.evict(
            "it does not put pages",
            f"keeps pages locked for more than {self.server.policy.ack_seconds:g} s",
        )

    def _execute(self, request: Request) -> Any:  # noqa: ANN401
        command = request.command
        kind = type(command)
        if kind.owner_only and not self._is_owner:
            raise OSError(
                errno.EPERM, f"{kind.name} is for root and the mount's owner only"
            )
        return self._commands[kind](request if kind.takes_fd else command)

    # --- the connection ------------------------------------------------------------

    def _negotiate(self, command: messages.QmpCapabilities) -> Nothing:
        self.peer.negotiated = True
        return Nothing()

    def _quit(self, command: messages.Quit) -> Nothing:
        # After the reply, which is the last that this loop sends.
        self.peer.when_answered(self.server.actions.quit)
        return Nothing()

    # --- files -----------------------------------------------------------------------

    def _find(self, name: str) -> OpenFile:
        """The file of an fdname, which stays open. A path is opened by `_open`."""
        opened = self._fdnames.get(name)
        if opened is None:
            raise OSError(
                errno.ENOENT, f"no fdname {name!r}: send an fd with getfd first"
            )
        return opened

    def _open(self, name: str) -> OpenFile:
        """The file of an fdname or a path, to be closed by the caller."""
        if not name.startswith("/"):
            return self._find(name).again()
        if not self._is_owner:
            raise OSError(
                errno.EPERM,
                "paths are for root and the mount's owner: send an fd with getfd",
            )
        try:
            return self.server.files.open_path(name)
        except OSError as exc:
            raise OSError(exc.errno, f"{name}: {exc.strerror}") from exc

    def borrowed(self, name: str) -> AbstractContextManager[OpenFile]:
        """The same for a moment: an fdname is not opened once more, as it is open."""
        opened = self._fdnames.get(name)
        return nullcontext(opened) if opened is not None else closing(self._open(name))

    def _name(self, fdname: str, opened: OpenFile) -> None:
        if (old := self._fdnames.pop(fdname, None)) is not None:
            old.close()
        self._fdnames[fdname] = opened

    def _check_fdname(self, fdname: str) -> None:
        limit = self.server.policy.limits.fdnames
        if fdname not in self._fdnames and len(self._fdnames) >= limit:
            raise OSError(
                errno.EMFILE,
                f"{limit} fdnames are taken (--limit fdnames=N): closefd one",
            )

    def _getfd(self, request: Request) -> Nothing:
        command = request.command
        assert isinstance(command, messages.GetFd)
        fd, refusal = request.passed
        if refusal is not None:
            raise refusal
        if fd < 0:
            raise OSError(
                errno.EBADF, "no fd came with the message: send one as SCM_RIGHTS"
            )
        self._check_fdname(command.fdname)
        self._name(command.fdname, self.server.files.open_fd(fd))
        return Nothing()

    def _closefd(self, command: messages.CloseFd) -> Nothing:
        self._find(command.fdname)
        self._fdnames.pop(command.fdname).close()
        return Nothing()

    async def _memfd_create(self, command: messages.MemfdCreate) -> Answer:
        if command.flags & ~(messages.MFD_CLOEXEC | messages.MFD_INACCESSIBLE):
            raise OSError(
                errno.EINVAL,
                f"flags {command.flags:#x}: only MFD_CLOEXEC (0x1) and "
                "MFD_INACCESSIBLE (0x8) are taken",
            )
        self._check_fdname(command.fdname)
        fd, opened = await self.server.files.create(
            f"memfd:{command.memfd}", command.size or 0, self._uid, self._gid
        )
        self._name(command.fdname, opened)
        return Answer(Nothing(), fd)

    def _get_memory(self, command: messages.GetMemory) -> Answer:
        if not self.server.policy.guest_access:
            raise OSError(errno.EPERM, "this mount has --no-guest-access")
        with closing(self._open(command.file)) as opened:
            return Answer(Nothing(), opened.reopen_backing())

    # --- notifiers -------------------------------------------------------------------

    async def _register_notifier(
        self, command: messages.RegisterNotifier
    ) -> messages.Notifier:
        self._check_scope("file")

        async def register(registration: Registration) -> None:
            await registration.opened.file.notifiers.register(registration)

        return await self._add_notifier(command.file, register)

    async def _bind(self, command: messages.Bind) -> messages.Notifier:
        rules = self.server.shim.semantics
        self._check_scope("range")
        if command.start >= command.end:
            raise OSError(
                errno.EINVAL,
                f"no pages from {command.start} to {command.end}: the end is the page "
                "behind the last",
            )
        exclusive = rules.exclusive if command.exclusive is None else command.exclusive
        if rules.exclusive and not exclusive:
            raise OSError(errno.EINVAL, "ranges are exclusive in these semantics")

        async def bind(registration: Registration) -> None:
            file = registration.opened.file
            if file.ends_before(command.end * file.page_size):
                raise OSError(errno.EINVAL, "the range ends past the file's end")
            await registration.opened.file.notifiers.bind(
                registration,
                command.start,
                command.end,
                exclusive=exclusive,
            )

        return await self._add_notifier(command.file, bind)

    async def _add_notifier(
        self, name: str, register: Callable[[Registration], Awaitable[None]]
    ) -> messages.Notifier:
        if self._is_silent:
            raise OSError(errno.ESHUTDOWN, "nobody is left to answer events")
        limit = self.server.policy.limits.notifiers
        if len(self.notifiers) >= limit:
            raise OSError(
                errno.EDQUOT,
                f"{limit} notifiers are registered (--limit notifiers=N)",
            )
        limit = self.server.policy.limits.total_notifiers
        if self.server.notifiers >= limit:
            raise OSError(
                errno.EDQUOT,
                f"all peers have {limit} notifiers (--limit total_notifiers=N)",
            )
        opened = self._open(name)
        number = next(self.server.notifier_numbers)
        registration = Registration(self, number, opened)
        # First, so that it goes with the peer even if that goes while this waits.
        self.notifiers[number] = registration
        try:
            await register(registration)
        except OSError:
            if self.notifiers.pop(number, None) is not None:
                opened.close()
            raise
        if number not in self.notifiers:
            opened.file.notifiers.drop(registration)
        return messages.Notifier(notifier=number)

    def _registration(self, number: int) -> Registration:
        registration = self.notifiers.get(number)
        if registration is None:
            raise OSError(errno.ENOENT, f"this peer has no notifier {number}")
        return registration

    async def _unregister_notifier(
        self, command: messages.UnregisterNotifier
    ) -> Nothing:
        self._check_scope("file")
        return await self._remove_notifier(command.notifier)

    async def _unbind(self, command: messages.Unbind) -> Nothing:
        self._check_scope("range")
        return await self._remove_notifier(command.notifier)

    async def _remove_notifier(self, number: int) -> Nothing:
        registration = self._registration(number)
        await registration.opened.file.notifiers.unregister(registration)
        if self.notifiers.pop(number, None) is not None:
            registration.opened.close()
        return Nothing()

    def _check_scope(self, scope: Scope) -> None:
        """Raise `OSError` unless notifiers are for a file, or for a range."""
        if self.server.shim.semantics.scope == scope:
            return
        raise OSError(
            errno.EOPNOTSUPP,
            "notifiers are registered for files in these semantics: use "
            "register-notifier and unregister-notifier"
            if scope == "range"
            else "notifiers are bound to ranges in these semantics: use bind, unbind",
        )

    def _invalidate_done(self, command: messages.InvalidateDone) -> Nothing:
        registration = self._registration(command.notifier)
        registration.opened.file.notifiers.answer(registration, command.sequence)
        return Nothing()

    # --- the rest --------------------------------------------------------------------

    def _query_file(self, command: messages.QueryFile) -> messages.FileInfo:
        with closing(self._open(command.file)) as opened:
            # But for this open.
            return queries.describe(
                opened.name, opened.ino, opened.file, opened.opens - 1
            )

    async def _memory_failure(self, command: messages.MemoryFailure) -> Nothing:
        with closing(self._open(command.file)) as opened:
            await opened.file.pages.poison(command.offset)
        return Nothing()
