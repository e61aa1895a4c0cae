"""Traces of real mounts: `inaccfs trace`, `inaccfs mount --trace`, `client.trace()`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

import inaccfs
from inaccfs.client import wire
from inaccfs.client.requests import Request
from inaccfs.control.messages import TraceStart
from inaccfs.control.outlet import Outlet
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, PUNCH, fallocate
from tests.chrome_traces import Trace
from tests.mount.support import (
    ENVIRONMENT,
    NOBODY,
    PAGE,
    PATIENCE,
    background,
    cli,
    complaint,
    doomed,
    inaccfs_command,
    kill,
    mounted,
    needs_root,
    new_file,
    opened,
    run,
    tmpfs,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs import Mount

pytestmark = [pytest.mark.fuse, pytest.mark.semantics("v10")]


@contextmanager
def tracing(
    mount: Mount, *words: str | Path, out: int | IO[bytes] = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """An `inaccfs trace` that has begun."""
    tracer = subprocess.Popen(
        inaccfs_command("trace", mount.path, *words),
        stdout=out,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    try:
        assert tracer.stderr is not None
        assert b"Ctrl-C ends it" in tracer.stderr.readline()
        yield tracer
    finally:
        with suppress(ProcessLookupError):
            tracer.kill()
        tracer.communicate()


def invalidate(mount: Mount) -> None:
    """A punch with an event to one notifier, and a refused read."""
    path = new_file(mount.path / "guest", 16 * PAGE)
    with (
        inaccfs.connect(mount.path) as shim,
        opened(path) as fd,
        shim.file(fd) as memory,
        memory.register_notifier(lambda start, end: None),
    ):
        memory.get_pfn(2)
        fallocate(fd, PUNCH, PAGE, 2 * PAGE)
        with pytest.raises(OSError, match="Invalid"):
            os.read(fd, 8)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_picture_is_whole_however_the_trace_is_ended(
    mount: Mount, scratch: Path, number: signal.Signals
) -> None:
    file = scratch / "t.json"
    with tracing(mount, "-o", file) as tracer:
        invalidate(mount)
        tracer.send_signal(number)
        out, err = tracer.communicate(timeout=PATIENCE)
        assert (tracer.returncode, out) == (0, b"")
        assert b"records in" in err
    trace = Trace(file.read_bytes())
    assert trace.about["lost"] == 0
    (punch,) = trace.of("X", "punch")
    assert trace.place(punch) == ("files", "/guest")
    assert punch["args"]["pid"] == os.getpid()
    assert [begin for begin, _ in trace.arrows] == [punch, punch]
    assert [end["name"] for _, end in trace.arrows] == [
        "INVALIDATE_START",
        "INVALIDATE_END",
    ]
    (read,) = trace.of("i", "read")
    assert read["args"]["pid"] == os.getpid()
    assert read["args"]["command"] == Path("/proc/self/comm").read_text().strip()


def test_lines_are_there_as_things_happen(mount: Mount) -> None:
    with tracing(mount, "--filter", "punch,read", "--filter", "answer") as tracer:
        invalidate(mount)
        assert tracer.stdout is not None
        lines = [tracer.stdout.readline().decode() for _ in range(4)]
        tracer.send_signal(signal.SIGINT)
        assert tracer.wait(PATIENCE) == 0
    assert [line.split("] ")[1].split("(")[0] for line in lines] == [
        "answers INVALIDATE_START",
        "answers INVALIDATE_END",
        "punch",
        "read",
    ]
    assert f"[{os.getpid()} " in lines[2]
    assert "(/guest, 0x1000, 0x3000) = 0 <0.0" in lines[2]
    assert lines[3].endswith("= -1 EINVAL (Invalid argument)\n")


def test_for_programs_there_is_an_object_a_line(mount: Mount) -> None:
    with tracing(mount, "--json", "--filter", "punch") as tracer:
        invalidate(mount)
        assert tracer.stdout is not None
        record = json.loads(tracer.stdout.readline())
        tracer.send_signal(signal.SIGTERM)
        assert tracer.wait(PATIENCE) == 0
    assert (record["kind"], record["file"]) == ("punch", "/guest")
    assert (record["start"], record["end"]) == (PAGE, 3 * PAGE)
    assert 0 < record["began"] < record["time"]


def test_a_trace_ends_with_its_mount(scratch: Path) -> None:
    file = scratch / "t.json"
    with mounted() as mount, tracing(mount, "-o", file) as tracer:
        invalidate(mount)
        cli("umount", mount.path)
        assert tracer.wait(PATIENCE) == 0
    assert len(Trace(file.read_bytes()).of("X", "punch")) == 1


def test_a_trace_is_whole_and_complains_when_the_daemon_is_killed(
    scratch: Path,
) -> None:
    file = scratch / "t.json"
    with doomed() as mount, tracing(mount, "-o", file) as tracer:
        kill(mount)
        _, err = tracer.communicate(timeout=PATIENCE)
        assert tracer.returncode == 1
        last = err.decode().splitlines()[-1]
        assert last == (
            f"inaccfs: {mount.control}: the daemon has hung up; its log says why"
        )
    Trace(file.read_bytes())


def test_it_ends_with_the_reader_of_its_output(mount: Mount) -> None:
    with tracing(mount) as tracer:
        assert tracer.stdout is not None
        tracer.stdout.close()
        tracer.stdout = None
        # No call is made that would be printed.
        assert tracer.wait(PATIENCE) == 0


def test_a_file_that_cannot_be_written_is_one_line_before_there_is_a_trace(
    mount: Mount,
) -> None:
    for file, why in (
        ("/dev/full", "No space left on device"),
        # No file of the mount itself can be written.
        (mount.path / "t.json", "Invalid argument"),
    ):
        said = complaint("trace", mount.path, "-o", file)
        assert said == f"inaccfs: cannot write {file}: {why}"


@needs_root
def test_a_disk_that_gets_full_is_one_line(mount: Mount, tmp_path: Path) -> None:
    with (
        tmpfs(tmp_path / "disk", "size=4k") as disk,
        opened(new_file(mount.path / "f", PAGE)) as fd,
        tracing(mount, "-o", disk / "t.json") as tracer,
    ):
        for _ in range(1000):
            fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, PAGE)
        _, err = tracer.communicate(timeout=PATIENCE)
        assert tracer.returncode == 1
        file = disk / "t.json"
        said = f"inaccfs: cannot write {file}: No space left on device\n"
        assert err.decode() == said


def test_who_does_not_read_keeps_nobody_waiting(mount: Mount, scratch: Path) -> None:
    """Neither fallocate(2) nor the notifiers wait; the peer is not evicted."""
    connection, conversation = wire.dial(wire.find_socket(mount.path))
    with connection, opened(new_file(mount.path / "f", PAGE)) as fd:
        call = conversation.start(Request(TraceStart(), lambda _: None))
        wire.send_all(Outlet(connection), conversation)
        while not call.done:
            conversation.feed(*wire.receive(connection))
        for _ in range(30_000):
            fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, PAGE)
        with inaccfs.connect(mount.path) as shim:
            assert shim.query_stats().fallocates >= 30_000
        # The records that had room can still be read.
        connection.settimeout(PATIENCE)
        assert b"TRACE" in connection.recv(1 << 16)
        connection.shutdown(socket.SHUT_RDWR)


@needs_root
def test_only_root_and_the_owner_may_trace(scratch: Path) -> None:
    with mounted(options=["allow_other", f"allow-uid={NOBODY}"], mode=0o755) as mount:
        mount.path.parent.chmod(0o755)
        words = inaccfs_command("trace", mount.path)
        result = run(*words, status=1, user=NOBODY, group=NOBODY)
        assert "only root and the mount's owner may trace it" in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_what_cannot_be_traced_is_one_line(scratch: Path) -> None:
    assert "neither an inaccfs mount" in complaint("trace", scratch)
    assert "neither an inaccfs mount" in complaint("trace", scratch / "missing")
    file = scratch / "none" / "t.json"
    with mounted() as mount:
        result = cli("trace", mount.path, "-o", file, status=1)
        assert result.stderr.splitlines()[-1] == (
            f"inaccfs: cannot write {file}: No such file or directory"
        )
    unknown = cli("trace", scratch, "--filter", "pnuch", status=2)
    assert "'pnuch' is not one of allocate, punch" in unknown.stderr


def test_a_mount_can_be_traced_from_its_start(scratch: Path) -> None:
    mountpoint, file = scratch / "mnt", scratch / "t.json"
    mountpoint.mkdir()
    with background(mountpoint, scratch, "--trace", str(file)):
        new_file(mountpoint / "f", PAGE)
        cli("umount", mountpoint)
    trace = Trace(file.read_bytes())
    assert [trace.place(each) for each in trace.of("X", "truncate")] == [
        ("files", "/f")
    ]
    assert trace.about["lost"] == 0


def test_a_trace_from_the_start_survives_the_daemon(scratch: Path) -> None:
    file = scratch / "t.json"
    with doomed_with(f"trace={file}") as mount:
        new_file(mount.path / "f", PAGE)
        # The recorder has received the call.
        while b"truncate" not in file.read_bytes():
            os.sched_yield()
        recorder = children(mount.process.pid, "inaccfs.tracing.recorder")
        kill(mount)
        for pid in recorder:
            while Path(f"/proc/{pid}").exists():
                os.sched_yield()
    assert len(Trace(file.read_bytes()).of("X", "truncate")) == 1


@contextmanager
def doomed_with(option: str) -> Iterator[Mount]:
    with (
        pytest.raises(inaccfs.InaccfsError, match="ended with status -9"),
        inaccfs.mounted(options=option) as mount,
    ):
        yield mount


def children(pid: int, words: str) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child)
        for child in found
        if words in Path(f"/proc/{child}/cmdline").read_text()
    ]


def test_a_recorder_that_is_killed_costs_the_trace_and_not_the_mount(
    scratch: Path,
) -> None:
    file = scratch / "t.json"
    with inaccfs.mounted(options=f"trace={file}") as mount:
        (recorder,) = children(mount.process.pid, "inaccfs.tracing.recorder")
        os.kill(recorder, signal.SIGKILL)
        invalidate(mount)
        invalidate_again = mount.path / "g"
        new_file(invalidate_again, PAGE)
        while b"has ended" not in mount.log.read_bytes():
            invalidate_again.unlink()
            new_file(invalidate_again, PAGE)


def test_a_fifo_that_nobody_reads_is_refused_at_once(
    mount: Mount, scratch: Path
) -> None:
    fifo = scratch / "fifo"
    os.mkfifo(fifo)
    for words in (
        ("trace", "-o", fifo, mount.path),
        ("metrics", mount.path, "-o", fifo),
    ):
        said = complaint(*words)
        assert said == f"inaccfs: cannot write {fifo}: No such device or address", words


def test_a_trace_that_cannot_be_written_is_no_mount(scratch: Path) -> None:
    mountpoint = scratch / "mnt"
    mountpoint.mkdir()
    assert "cannot write the trace" in complaint(
        "mount", mountpoint, "--trace", scratch / "none" / "t.json"
    )
    fifo = scratch / "fifo"
    os.mkfifo(fifo)
    # No process reads it.
    assert "cannot write the trace" in complaint("mount", mountpoint, "--trace", fifo)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_the_client_gives_records(mount: Mount) -> None:
    with inaccfs.connect(mount.path) as shim, shim.trace("punch", "answer") as trace:
        invalidate(mount)
        kinds = []
        for record in trace:
            kinds.append(record.kind)
            if record.kind == "punch":
                trace.stop()
    assert kinds == ["answer", "answer", "punch"]
    assert trace.lost == 0
