"""The files that one peer can name: by its own fdnames, and by paths."""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager, closing, nullcontext
from typing import TYPE_CHECKING, Any, Final

from inaccfs.control import messages, queries
from inaccfs.control.messages import Command, Nothing
from inaccfs.control.request import Answer, Request
from inaccfs.shim import memoryfailure

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.control.caller import Caller
    from inaccfs.control.context import Context
    from inaccfs.control.mountfiles import OpenFile


class FdNames:
    """The fdnames of one peer, and the commands about one file."""

    def __init__(self, context: Context, caller: Caller) -> None:
        self._context: Final = context
        self._caller: Final = caller
        self._is_owner: Final = caller.is_owner
        # A file stays open while it has a name here.
        self._fdnames: Final[dict[str, OpenFile]] = {}

    def handlers(self) -> dict[type[Command], Callable[[Any], Any]]:
        """The handler of each command."""
        return {
            messages.GetFd: self._getfd,
            messages.CloseFd: self._closefd,
            messages.MemfdCreate: self._memfd_create,
            messages.GetMemory: self._get_memory,
            messages.QueryFile: self._query_file,
            messages.QueryMap: self._query_map,
            messages.MemoryFailure: self._memory_failure,
        }

    def close(self) -> None:
        """Forget the peer's names. It has disconnected."""
        while self._fdnames:
            self._fdnames.popitem()[1].close()

    # --- finding ---------------------------------------------------------------------

    def open(self, name: str) -> OpenFile:
        """The file of an fdname or a path. The caller closes it.

        Raises:
            OSError: ENOENT, EPERM for a path, or the errno of opening the path.
        """
        if not name.startswith("/"):
            return self._find(name).again()
        if not self._is_owner:
            raise OSError(
                errno.EPERM,
                "paths are for root and the mount's owner: send an fd with getfd",
            )
        try:
            return self._context.files.open_path(name)
        except OSError as exc:
            raise OSError(exc.errno, f"{name}: {exc.strerror}") from exc

    def borrowed(self, name: str) -> AbstractContextManager[OpenFile]:
        """As `open`, for a with block. The file of an fdname is not opened again."""
        opened = self._fdnames.get(name)
        return nullcontext(opened) if opened is not None else closing(self.open(name))

    def _find(self, fdname: str) -> OpenFile:
        opened = self._fdnames.get(fdname)
        if opened is None:
            raise OSError(
                errno.ENOENT, f"no fdname {fdname!r}: send an fd with getfd first"
            )
        return opened

    # --- naming ----------------------------------------------------------------------

    def _check_room(self, fdname: str) -> None:
        limit = self._context.policy.limits.fdnames
        if fdname not in self._fdnames and len(self._fdnames) >= limit:
            raise OSError(
                errno.EMFILE,
                f"{limit} fdnames are taken (--limit fdnames=N): closefd one",
            )

    def _name(self, fdname: str, opened: OpenFile) -> None:
        if (old := self._fdnames.pop(fdname, None)) is not None:
            old.close()
        self._fdnames[fdname] = opened

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
        self._check_room(command.fdname)
        opened = self._context.files.open_fd(fd)
        if command.weak:
            opened.weaken()
        self._name(command.fdname, opened)
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
        self._check_room(command.fdname)
        caller = self._caller
        fd, opened = await self._context.files.create(
            f"memfd:{command.memfd}", command.size or 0, caller.uid, caller.gid
        )
        self._name(command.fdname, opened)
        return Answer(Nothing(), fd=fd)

    # --- one file --------------------------------------------------------------------

    def _get_memory(self, command: messages.GetMemory) -> Answer:
        if not self._context.policy.guest_access:
            raise OSError(errno.EPERM, "this mount has --no-guest-access")
        with self.borrowed(command.file) as opened:
            return Answer(Nothing(), fd=opened.reopen_backing())

    def _query_file(self, command: messages.QueryFile) -> messages.FileInfo:
        with closing(self.open(command.file)) as opened:
            # All opens except this one.
            return queries.describe(opened, opened.opens - 1)

    async def _query_map(self, command: messages.QueryMap) -> messages.PageMap:
        with closing(self.open(command.file)) as opened:
            return await queries.page_map(opened.file, command)

    async def _memory_failure(self, command: messages.MemoryFailure) -> Nothing:
        with closing(self.open(command.file)) as opened:
            number = self._caller.number
            await memoryfailure.report(opened.file, command.offset, number)
        return Nothing()
