"""A FUSE file system that answers all requests except FLUSH: close(2) hangs."""

from __future__ import annotations

import os
import select
import stat
import struct
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from inaccfs import mountcalls
from inaccfs.fuse.wire import Op

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# include/uapi/linux/fuse.h: struct fuse_in_header, fuse_out_header, fuse_init_out,
# fuse_attr, fuse_attr_out, fuse_entry_out and fuse_open_out.
_in_header: Final = struct.Struct("=IIQQIIII")
_out_header: Final = struct.Struct("=IiQ")
_init_out: Final = struct.Struct("=IIIIHHIIHHI28x")
_attr: Final = struct.Struct("=48xIII" + "I" * 7)
_attr_out: Final = struct.Struct("=QII")
_entry_out: Final = struct.Struct("=QQQQII")
_open_out: Final = struct.Struct("=QII")

_FILE_ID: Final = 2


def _attributes(nodeid: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if nodeid == 1 else stat.S_IFREG | 0o666
    return _attr.pack(0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _reply(op: int, nodeid: int) -> bytes | None:
    """The payload of a reply; None if there is no reply."""
    match op:
        case Op.INIT:
            return _init_out.pack(7, 31, 0, 0, 0, 0, 4096, 1, 0, 0, 0)
        case Op.GETATTR:
            return _attr_out.pack(1 << 20, 0, 0) + _attributes(nodeid)
        case Op.LOOKUP:
            valid = 1 << 20
            entry = _entry_out.pack(_FILE_ID, 0, valid, valid, 0, 0)
            return entry + _attributes(_FILE_ID)
        case Op.OPEN:
            return _open_out.pack(0, 0, 0)
        case _:
            return None


def _serve(device: int, end: int) -> None:
    poller = select.poll()
    poller.register(device, select.POLLIN)
    poller.register(end, select.POLLIN)
    while end not in dict(poller.poll()):
        request = os.read(device, 1 << 17)
        _, op, unique, nodeid, *_ = _in_header.unpack_from(request)
        if (body := _reply(op, nodeid)) is not None:
            header = _out_header.pack(_out_header.size + len(body), 0, unique)
            os.write(device, header + body)


@contextmanager
def unanswered(point: Path) -> Iterator[int]:
    """An fd of a file at *point* whose close would hang during a with block."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    mountcalls.mount("unanswered", str(point), "fuse", 0, options)
    reading, writing = os.pipe()
    server = threading.Thread(target=_serve, args=(device, reading))
    server.start()
    fd = -1
    try:
        fd = os.open(point / "file", os.O_RDWR)
        yield fd
    finally:
        os.close(writing)
        server.join()
        # Now no process waits for a reply any more.
        os.close(device)
        os.close(reading)
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)
        mountcalls.umount(str(point), mountcalls.MNT_DETACH)
