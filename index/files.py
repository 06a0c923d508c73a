"""Part 10 files below the data folder: ``files/<study>/<series>/<instance>-<token>.dcm``.

A file appears under its final name only when it is whole, and when its rows are committed it is flushed or in the
journal of arrivals; no name is ever used twice: whoever removes
an old version, or still reads it, has nothing to do with the new one. A UID becomes part of a path only when it is a
valid one; any other is replaced by a digest of it, so that nothing a sender writes can name a file.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import IO

from index.durable import flush
from index.errors import OutOfSpace

_LOG = logging.getLogger(__name__)

_LONGEST_UID = 64
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_MIB = 1 << 20
_PLACE_ATTEMPTS = 100
_SERIES_DEPTH = 3
_NAMES_AT_ONCE = 16


def is_valid_uid(uid: str) -> bool:
    """Whether `uid` is digits and dots, at most 64 characters (PS3.5 9.1; leading zeros are let pass)."""
    return len(uid) <= _LONGEST_UID and _is_uid(uid)


@lru_cache(maxsize=1024)
def _is_uid(uid: str) -> bool:
    return _UID.fullmatch(uid) is not None


def name_of(uid: str) -> str:
    """Return the UID as the name of a file or folder; of one that is none, and may be a path, its hash."""
    return uid if is_valid_uid(uid) else "x" + hashlib.sha256(uid.encode()).hexdigest()[:32]


def named_uid(path: str) -> str:
    """Return the SOP Instance UID that the name of a stored file has, or what stands for one that is not valid."""
    return path.rpartition("/")[2].rpartition("-")[0]


class FileStore:
    """The files of one archive.

    Parameters
    ----------
    root
        The data folder.
    reserve_mb
        MiB that have to stay free on its file system.
    """

    def __init__(self, root: Path, reserve_mb: int) -> None:
        self.root = root
        self.incoming = root / "incoming"
        self._incoming_name, self._root_name = str(self.incoming), str(root)
        self._reserve_bytes = reserve_mb * _MIB
        self._held: dict[Path, IO[bytes]] = {}
        self._named: deque[Path] = deque()
        self._naming = threading.Lock()
        self._numbers = count()
        for folder in (self.incoming, root / "files"):
            _make_durable_folder(folder)

    def require_space(self, size: int = 0) -> None:
        """Raise `OutOfSpace` when storing `size` bytes would leave less free than the reserve."""
        free = shutil.disk_usage(self.root).free
        if free - size < self._reserve_bytes:
            raise OutOfSpace(
                f"{free // _MIB} MiB free, {self._reserve_bytes // _MIB} MiB are kept in reserve: nothing stored"
            )

    def new_name(self) -> Path:
        """Return a path in the incoming folder that no file has or had."""
        name = f"{incoming_prefix()}{next(self._numbers)}-{secrets.token_hex(4)}.part"
        return Path(f"{self._incoming_name}{os.sep}{name}")

    def named_file(self) -> Path:
        """Return an empty file in the incoming folder whose name is on disk: its bytes alone have to be flushed."""
        while True:
            with suppress(IndexError):
                path = self._named.popleft()
                if path.exists():  # nobody has tidied up what seemed to be left behind
                    return path
                continue
            with self._naming:
                if not self._named:
                    made = [self.new_name() for _ in range(_NAMES_AT_ONCE)]
                    for path in made:
                        path.touch(mode=0o600, exist_ok=False)
                    flush(self.incoming)
                    self._named.extend(made)

    def receive(self, source: Path | bytes, *, within_reserve: bool = True) -> Path:
        """Bring `source` into the incoming folder and return its path there; a file already there stays.

        A copy is held until `release`: nobody takes it for one that a dead process left.

        Parameters
        ----------
        within_reserve
            False: what is to stay free does not matter.

        Raises
        ------
        OutOfSpace
            Nothing is left in the incoming folder.
        """
        if isinstance(source, Path) and self._is_incoming(source):
            try:
                if within_reserve:
                    self.require_space()
            except OutOfSpace:
                source.unlink(missing_ok=True)
                raise
            return source
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if within_reserve:
            self.require_space(size)
        handle, name = tempfile.mkstemp(dir=self.incoming, prefix=incoming_prefix(), suffix=".part")
        path = Path(name)
        target = self._held[path] = os.fdopen(handle, "wb")
        try:
            fcntl.flock(target, fcntl.LOCK_SH)
            if isinstance(source, bytes):
                target.write(source)
            else:
                with source.open("rb") as origin:
                    shutil.copyfileobj(origin, target, _MIB)
            target.flush()
        except BaseException:
            self.release(path)
            raise
        return path

    def _is_incoming(self, source: Path) -> bool:
        return source.parent == self.incoming or source.parent.resolve() == self.incoming

    def release(self, incoming: Path, *, is_placed: bool = False) -> None:
        """Be done with what `receive` returned; what is still in the incoming folder, unless it `is_placed`, goes."""
        held = self._held.pop(incoming, None)
        try:
            if not is_placed:
                incoming.unlink(missing_ok=True)
        finally:
            if held is not None:
                with suppress(OSError):  # a full disk, of which `receive` has told already
                    held.close()

    def new_path(self, study: str, series: str, instance: str) -> str:
        """Return a path below the data folder for these UIDs that no file has or had."""
        return f"files/{name_of(study)}/{name_of(series)}/{name_of(instance)}-{secrets.token_hex(8)}.dcm"

    def place(self, incoming: Path, relative: str, *, flushed: bool = True) -> tuple[Path, ...]:
        """Give the file `incoming` its final name; return the folders to flush before that name is promised.

        Parameters
        ----------
        flushed
            Whether folders that are made for it are on disk when this returns.
        """
        if not flushed and self._is_moved(incoming, relative):
            return ()
        final = self.root / relative
        for attempt in range(_PLACE_ATTEMPTS):
            try:
                if flushed:
                    _make_durable_folder(final.parent)
                    incoming.replace(final)
                else:
                    _replace_into(incoming, final)
                break
            except (FileNotFoundError, FileExistsError):
                # Somebody who removed the last file of the folder took it away as well: before the file came, or
                # between two looks of mkdir.
                if attempt == _PLACE_ATTEMPTS - 1 or not incoming.exists():
                    raise
        return tuple(final.parents[:3]) if flushed else ()  # those above: made by one who left them to the system

    def _is_moved(self, incoming: Path, relative: str) -> bool:
        """Give a file its final name, if its folder is there, as it most often is."""
        try:
            os.replace(incoming, f"{self._root_name}{os.sep}{relative}")  # noqa: PTH105  (a fifth of the time)
        except FileNotFoundError:
            return False
        return True

    def all_paths(self) -> Iterator[list[str]]:
        """Yield the paths below the data folder of all stored files, folder by folder.

        Raises
        ------
        OSError
            A folder cannot be listed: what is in it must not be taken for lost.
        """
        for study in _folders(self.root / "files"):
            for series in _folders(study):
                begin = series.relative_to(self.root).as_posix()
                yield [f"{begin}/{name}" for name in _stored_names(series)]

    def holds_any(self) -> bool:
        """Whether there is any stored file."""
        return any(True for paths in self.all_paths() if paths)

    def path(self, relative: str) -> Path:
        """Absolute path of a stored file."""
        return self.root / relative

    def remove(self, relative: str) -> None:
        """Delete a stored file, durably, and the folders that it leaves empty."""
        self._flush_what_is_left(self._unlink(relative), set())

    def remove_all(self, relatives: Iterable[str]) -> dict[str, str]:
        """Delete stored files, durably, and the folders that they leave empty; each folder is flushed once.

        Returns
        -------
        dict
            Path of each file that the disk refuses to remove, or that may still come back, and why.
        """
        left: dict[str, str] = {}
        folders: dict[Path, list[str]] = {}
        for relative in relatives:
            try:
                folders.setdefault(self._unlink(relative), []).append(relative)
            except OSError as error:
                left[relative] = error.strerror or str(error)
        flushed: set[Path] = set()
        for folder, removed in folders.items():
            try:
                self._flush_what_is_left(folder, flushed)
            except OSError as error:
                left.update(dict.fromkeys(removed, error.strerror or str(error)))
        return left

    def _unlink(self, relative: str) -> Path:
        """Delete a stored file and the folders that it leaves empty; return the folder that has lost a name by it."""
        (self.root / relative).unlink(missing_ok=True)
        return self._remove_empty_folders(relative)

    def _flush_what_is_left(self, folder: Path, flushed: set[Path]) -> None:
        """Flush a folder, or, if somebody has removed it, the nearest above; add it to those that are `flushed`."""
        while folder not in flushed:
            try:
                flush(folder)
            except FileNotFoundError:
                if folder.parent == self.root:  # what is not mounted has lost nothing
                    raise
                folder = folder.parent
            else:
                flushed.add(folder)

    def _remove_empty_folders(self, relative: str) -> Path:
        """Remove the folders above `relative` that are empty; return the lowest that was not."""
        folder = (self.root / relative).parent
        while self.root / "files" in folder.parents:
            try:
                folder.rmdir()
            except OSError:  # not empty: it still holds other files
                break
            folder = folder.parent
        return folder

    def quarantine(self, relative: str, content_name: str = "") -> str:
        """Move a file of the data folder to ``quarantine/``, durably, and return its path there.

        Nothing there is ever found, sent or removed by the node: it is for a person to look at.

        Parameters
        ----------
        content_name
            Its name there, which nothing but the same content bears: once there is enough.
        """
        origin = self.root / relative
        target = self.root / "quarantine" / (content_name or Path(relative).relative_to(Path(relative).parts[0]))
        if target.exists() and not content_name:
            target = target.with_name(f"{secrets.token_hex(8)}-{target.name}")
        _make_durable_folder(target.parent)
        origin.replace(target)
        flush(target.parent)
        flush(origin.parent)
        self._remove_empty_folders(relative)
        return target.relative_to(self.root).as_posix()

    def borrow(self, relative: str) -> Path:
        """Return a second name, in the incoming folder, for a file: ingest moves or drops only that."""
        second = self.incoming / f"{incoming_prefix()}{secrets.token_hex(8)}.part"
        try:
            second.hardlink_to(self.root / relative)
        except OSError:  # a file system without hard links: the name of a copy
            with (self.root / relative).open("rb") as origin, second.open("wb") as target:
                shutil.copyfileobj(origin, target, _MIB)
        return second

    def strays(self, idle_s: float) -> Iterator[str]:
        """Yield the paths below the data folder of files that are at no place where the archive puts any.

        Parameters
        ----------
        idle_s
            A file in the incoming folder is one when it is not empty, and has not been written to for so long, seconds.
        """
        for folder, folders, names in os.walk(self.root / "files"):
            depth = len(Path(folder).relative_to(self.root).parts)  # 1: files, 2: a study, 3: a series
            if depth == _SERIES_DEPTH:
                names += folders
                folders.clear()
            for path in (Path(folder) / name for name in names):
                if depth != _SERIES_DEPTH or not path.name.endswith(".dcm") or _is_no_file(path):
                    yield path.relative_to(self.root).as_posix()
            folders.sort()
        latest = time.time() - idle_s
        for path in self.incoming.iterdir():
            with suppress(FileNotFoundError):  # received meanwhile
                status = path.stat()
                if path.is_file() and status.st_size and status.st_mtime <= latest and not _is_held(path):
                    yield path.relative_to(self.root).as_posix()

    def clear_incoming(self, process: int | None = None) -> int:
        """Delete what an earlier run, or the process with that ID, left half-received; return how many files had begun.

        What a process that lives is bringing, an import for instance, stays; so does what the disk refuses to delete.
        """
        begin = "" if process is None else incoming_prefix(process)
        left = 0
        for path in self.incoming.iterdir():
            # A draft of such a file has a dot before its name.
            try:
                if path.is_file() and path.name.lstrip(".").startswith(begin) and not _is_held(path):
                    size = path.stat().st_size
                    path.unlink()
                    left += bool(size)  # an empty one is a name that was ready for somebody
            except FileNotFoundError:
                continue
            except OSError as error:
                _LOG.warning("%s stays: %s", path, error.strerror or error)
        return left


def incoming_prefix(process: int | None = None) -> str:
    """Return how the names of files begin that a process, this one when None, puts into the incoming folder."""
    return f"{os.getpid() if process is None else process}-"


def _folders(folder: Path) -> list[Path]:
    """Return the folders in `folder`, in order; none when it has been removed meanwhile."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _stored_names(folder: Path) -> list[str]:
    """Return the names of the instance files in `folder`, in order; none when it has been removed meanwhile."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.name.endswith(".dcm") and entry.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_no_file(path: Path) -> bool:
    """Whether there is something else: a folder, a pipe, a link to nowhere."""
    return not path.is_file() and os.path.lexists(path)


def _is_held(path: Path) -> bool:
    """Whether a `receive` of a process that lives has not been released: its lock goes when it dies."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def flush_and_digest(path: Path) -> str:
    """Flush the file's bytes to disk and return their SHA-256 as hex."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace_into(incoming: Path, final: Path) -> None:
    """Move a file, into a folder that is most often there."""
    try:
        incoming.replace(final)
    except FileNotFoundError:
        for folder in reversed(final.parents[:2]):
            folder.mkdir(mode=0o700, exist_ok=True)
        incoming.replace(final)


def _make_durable_folder(folder: Path) -> None:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
        flush(path.parent)


def is_part10(path: Path) -> bool:
    """Whether the file has the preamble and prefix of PS3.10 7.1."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
