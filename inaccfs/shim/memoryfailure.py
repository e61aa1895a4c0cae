"""Memory failures: restrictedmem_error_page() of v10, kvm_gmem_error_folio()."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from inaccfs.semantics.rules import MEMORY_ERROR
from inaccfs.shim.call import Kind
from inaccfs.shim.fetch import check_memory
from inaccfs.shim.moved import tell
from inaccfs.shim.notifiers import Notice
from inaccfs.shim.order import in_order

if TYPE_CHECKING:
    from inaccfs.shim.filestate import FileState
    from inaccfs.shim.memory import Memory
    from inaccfs.shim.order import Steps


async def report(file: FileState, page: int, who: int = 0) -> None:
    """Report that a page is poisoned. Until it is punched, get-pfn refuses it.

    *who* is the peer that reports it, for traces.

    Raises:
        OSError: EOPNOTSUPP in semantics without memory failures; EINVAL past the end;
            ENXIO for a hole; EHWPOISON if it is already poisoned, and then no event is
            sent.
    """
    superblock = file.superblock
    rules = superblock.semantics
    if not rules.has_memory_failure:
        raise OSError(
            errno.EOPNOTSUPP,
            "these semantics have no error callback (query-semantics)",
        )
    memory = await _memory_there(file, page)
    file.pages.poisoned.add(page)
    memory.poison(page, who)
    if rules.memory_failure == "error":
        await file.notifiers.announce(Notice(MEMORY_ERROR, page, page + 1))
    else:
        await tell(superblock, file.notifiers, _steps(file, page))


async def _memory_there(file: FileState, page: int) -> Memory:
    """The file's memory. Raises `OSError` if *page* has none and gets none."""
    turn = file.turn
    while turn.taken and page not in turn.fetches:
        # A long operation may be about to remove or to allocate the page.
        await turn.wait()
    memory = file.pages.memory_of(page, page + 1)
    if page not in turn.fetches and memory.frames.known(page, page + 1) is None:
        await check_memory(file.superblock, turn, memory.frames.fd, page)
    return memory


def _steps(file: FileState, page: int) -> Steps:
    """The events of a punch, though the page stays."""
    plan = file.superblock.plans[Kind.PUNCH]
    yield from in_order(plan, page, page + 1, kinds=file.kinds)
    yield from file.pages.moved.steps()
    return None
