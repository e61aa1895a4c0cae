"""Put the files where the system looks, and take them away again.

A record below the prefix's share/ names each file with its SHA-256, and each directory
that was made. It is written before the files, so that what an interrupted run has
written can be removed. A file that another program has put there or changed is neither
overwritten nor removed.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from inaccfs.errors import InaccfsError
from inaccfs.system.files import File, files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

RECORD: Final = Path("share/inaccfs/setup-system.json")
"""The record, below the prefix."""


class SystemFileError(InaccfsError):
    """A file of the system could not be read, written or removed."""


@dataclass(slots=True)
class _Record:
    """What was installed; paths are without --root."""

    files: dict[str, str] = field(default_factory=dict)
    # In the order in which they were made.
    directories: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Installer:
    """The files of one prefix, below *root*, which is / except for packagers."""

    prefix: Path
    root: Path = Path("/")

    def install(self, command: str, *, dry_run: bool = False) -> Iterator[str]:
        """Write all files; yield a line for each.

        Raises:
            SystemFileError: a file is there that is not ours, or one cannot be written.
        """
        record = self._read()
        wanted = list(files(self.prefix, command))
        for file in wanted:
            self._check(file, record)
        stale = record.files.keys() - {str(file.path) for file in wanted}
        if not dry_run:
            record.files |= {str(file.path): _sum(file.content) for file in wanted}
            self._begin(record, wanted)
        for file in wanted:
            if not dry_run:
                self._write(file)
            yield f"{'would write' if dry_run else 'wrote'} {self._at(file.path)}"
        # Pages of commands that an older version had.
        for path in sorted(stale):
            yield from self._remove_file(Path(path), record, dry_run=dry_run)
        if not dry_run:
            self._save(record)

    def remove(self, *, dry_run: bool = False) -> Iterator[str]:
        """Remove what `install` wrote; yield a line for each file.

        Raises:
            SystemFileError: nothing was installed here, or a file cannot be removed.
        """
        if not self._at(self._record).exists():
            raise SystemFileError(
                f"nothing to remove: {self._at(self._record)} is not there; with which "
                "--prefix was setup-system run?"
            )
        record = self._read()
        for path in list(record.files):
            yield from self._remove_file(Path(path), record, dry_run=dry_run)
        if dry_run:
            return
        self._unlink(self._record)
        self._remove_empty([Path(directory) for directory in record.directories])

    @property
    def _record(self) -> Path:
        return self.prefix / RECORD

    def _at(self, path: Path) -> Path:
        return self.root / path.relative_to("/")

    def _check(self, file: File, record: _Record) -> None:
        """Refuse to overwrite a file that this command has not installed."""
        found = self._sum_of(file.path)
        if found not in (None, _sum(file.content), record.files.get(str(file.path))):
            raise SystemFileError(
                f"{self._at(file.path)} is not from setup-system: move it away first"
            )

    def _sum_of(self, path: Path) -> str | None:
        """The SHA-256 of a file; "" for what is no regular file, None for none."""
        found = self._at(path)
        try:
            if found.is_symlink():
                return ""
            return _sum(found.read_bytes())
        except FileNotFoundError:
            return None
        except (IsADirectoryError, NotADirectoryError):
            return ""
        except OSError as exc:
            raise _failure("read", found, exc) from exc

    def _remove_file(
        self, path: Path, record: _Record, *, dry_run: bool
    ) -> Iterator[str]:
        found = self._sum_of(path)
        if found is not None and found != record.files[str(path)]:
            yield f"left {self._at(path)}: it has been changed since"
        elif found is not None:
            if not dry_run:
                self._unlink(path)
            yield f"{'would remove' if dry_run else 'removed'} {self._at(path)}"
        if not dry_run:
            del record.files[str(path)]

    def _unlink(self, path: Path) -> None:
        try:
            self._at(path).unlink(missing_ok=True)
        except OSError as exc:
            raise _failure("remove", self._at(path), exc) from exc

    def _begin(self, record: _Record, wanted: Iterable[File]) -> None:
        """Make the directories, those of the files after the record that names them."""
        places = self._missing([self._record])
        others = self._missing([self._record, *(file.path for file in wanted)])
        record.directories += [str(path) for path in others]
        try:
            self._make(places)
            self._save(record)
        except BaseException:
            self._remove_empty(places)
            raise
        self._make(others)

    def _missing(self, paths: Iterable[Path]) -> list[Path]:
        """Missing parent directories, outer ones first."""
        parents = [parent for path in paths for parent in reversed(path.parents)]
        return [one for one in dict.fromkeys(parents) if not self._at(one).is_dir()]

    def _make(self, directories: Iterable[Path]) -> None:
        for path in directories:
            at = self._at(path)
            try:
                if not at.is_dir():
                    at.mkdir()
                    # Whatever root's umask: all users read the files in it.
                    at.chmod(0o755)
            except OSError as exc:
                raise _failure("make", at, exc) from exc

    def _remove_empty(self, directories: Sequence[Path]) -> None:
        """Remove the directories that are empty."""
        for path in reversed(directories):
            with suppress(OSError):
                self._at(path).rmdir()

    def _read(self) -> _Record:
        at = self._at(self._record)
        try:
            found = json.loads(at.read_bytes())
            return _Record(dict(found["files"]), list(found["directories"]))
        except FileNotFoundError:
            return _Record()
        except OSError as exc:
            raise _failure("read", at, exc) from exc
        except (ValueError, KeyError, TypeError):
            raise SystemFileError(
                f"{at} is damaged: remove it, and what setup-system wrote, by hand"
            ) from None

    def _save(self, record: _Record) -> None:
        found = {"files": record.files, "directories": record.directories}
        text = json.dumps(found, indent=1) + "\n"
        self._write(File(self._record, text.encode()))

    def _write(self, file: File) -> None:
        """Replace the file in one step: mount(8) may run the old one meanwhile."""
        at = self._at(file.path)
        temporary = at.with_name(f".{at.name}.{os.getpid()}")
        try:
            try:
                temporary.write_bytes(file.content)
                temporary.chmod(file.mode)
                temporary.replace(at)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as exc:
            raise _failure("write", at, exc) from exc


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _failure(what: str, path: Path, exc: OSError) -> SystemFileError:
    advice = ""
    if isinstance(exc, PermissionError):
        advice = ": run it as root, or name a directory of yours with --prefix"
    return SystemFileError(f"cannot {what} {path}: {exc.strerror}{advice}")
