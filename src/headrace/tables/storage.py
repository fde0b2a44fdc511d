"""Where tables lie: a few durable operations on named bytes, and the local disk as the first.

Object storage is in `tables/objects.py`, HDFS in `tables/hdfs.py`.

Names are relative, with `/` between parts. What holds for every storage:

- `put_new` is exclusive and atomic: exactly one of two callers gets the name, the other `Fenced`,
  and nobody ever sees a part of the bytes. It is the fence that every commit stands on.
- `put_new`, `put` and `create` are durable when they return.
- A folder is made with the first name in it.

`Unavailable` means that there is no room and that nothing was kept, or that a storage far away gave
no answer: then whoever goes on first reads what is stored. `Corrupt` means that the device failed,
after which only a restart can tell what is stored.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from headrace.model.clock import Clock
from headrace.model.errors import Corrupt, Fenced, HeadraceError, Internal, Invalid, Unavailable
from headrace.model.failpoint import failpoint

TEMPORARY = ".tmp"
"""Folder of a local storage for what is not yet, or no longer, under its name."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A name directly in a folder, and how many bytes it holds."""

    name: str
    size_bytes: int


class Storage(Protocol):
    """Durable operations on named bytes; safe to use from many threads."""

    @property
    def drops_at_once(self) -> bool:
        """Whether `delete_folder` takes the folder's name away at once, or name after name."""

    def uri(self, path: str) -> str:
        """Return how other programs name `path`: absolute, or a URL."""

    def put_new(self, path: str, data: bytes, *, new_folder: bool = False) -> None:
        """Make a name hold `data`; `Fenced` if the name is taken.

        `Fenced`, too, if its folder is not there and was not to be made.
        """

    def put(self, path: str, data: bytes) -> None:
        """Make a name hold `data` from now on, whatever it held."""

    def create(self, path: str) -> AbstractContextManager[pa.NativeFile]:
        """Open a new name for writing; it is durable after the block, gone if the block fails.

        `Internal` if the name is taken: names of data files never come twice.
        """

    def read(self, path: str) -> bytes | None:
        """Return what a name holds; None if there is no such name."""

    def open(self, path: str) -> pa.NativeFile:
        """Open a name for reading; FileNotFoundError if there is none."""

    def files(self, folder: str) -> list[Stored]:
        """Return the names directly in a folder, sorted; none if there is no folder."""

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders directly in a folder, sorted."""

    def delete(self, path: str) -> None:
        """Remove a name; nothing if there is none. A power cut may bring it back."""

    def delete_folder(self, folder: str) -> None:
        """Remove a folder and all in it; nothing if there is none.

        First its name, at once, if the storage `drops_at_once`; else in no order.
        """

    def size(self, path: str) -> int | None:
        """Return how many bytes a name holds; None if there is no such name."""

    def exists(self, path: str) -> bool:
        """Return whether the name, or the folder, is there."""

    def stamp(self, path: str) -> str | None:
        """Return a word that changes whenever what a name holds does; None if there is none."""


def fsync(descriptor: int) -> None:
    """Make an open file or folder durable, through the disk's own cache on macOS too."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is None:
        os.fsync(descriptor)
    else:
        fcntl.fcntl(descriptor, full)


class LocalStorage:
    """A folder of the local disk.

    `fsync` is replaced only by the test which shows that the power-cut test would notice.
    """

    drops_at_once = True

    def __init__(self, root: Path, clock: Clock, *, fsync: Callable[[int], None] = fsync) -> None:
        """Use the folder `root`, made if it is missing."""
        self._root = Path(root).absolute()
        self._clock = clock
        self._fsync = fsync
        self._durable_folders: set[Path] = set()
        self._folders_lock = threading.Lock()
        self._temporary = self._root / TEMPORARY
        self._make_folder(self._temporary)

    def uri(self, path: str) -> str:
        """See `Storage`."""
        return str(self._root / path)

    def put_new(self, path: str, data: bytes, *, new_folder: bool = False) -> None:
        """See `Storage`.

        The order of effects:
        1. write a temporary file beside the log and fsync it: from here its bytes are durable;
        2. link it to its name, which fails if the name is taken: from here it is visible;
        3. fsync the folder: from here the name is durable.
        """
        target = self._root / path
        if new_folder:
            self._make_folder(target.parent)
        temporary = self._temporary / self._unique()
        try:
            self._write(temporary, data)  # 1
            failpoint("delta.1")
            os.link(temporary, target)  # 2
        except FileExistsError:
            raise Fenced(
                f"Another owner has written {path}",
                hint="Stop this process: its work from here on would be lost",
            ) from None
        except FileNotFoundError:
            raise Fenced(
                f"Another owner has removed the folder of {path} or what this one was writing",
                hint="Stop this process: its work from here on would be lost",
            ) from None
        except OSError as e:
            raise _failure(path, e) from e
        finally:
            temporary.unlink(missing_ok=True)
        failpoint("delta.2")
        self._sync_visible(target.parent)  # 3

    def put(self, path: str, data: bytes) -> None:
        """See `Storage`."""
        target = self._root / path
        self._make_folder(target.parent)
        temporary = self._temporary / self._unique()
        try:
            self._write(temporary, data)
            temporary.replace(target)
        except OSError as e:
            temporary.unlink(missing_ok=True)
            raise _failure(path, e) from e
        self._sync_visible(target.parent)

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[pa.NativeFile]:
        """See `Storage`."""
        target = self._root / path
        try:
            file = self._open_new(target)
        except OSError as e:
            raise _failure(path, e) from e
        try:
            with file:
                yield file
            failpoint("stage.1")
            self._sync_path(target)
            self._sync_path(target.parent)
        except OSError as e:
            target.unlink(missing_ok=True)
            raise _failure(path, e) from e
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        failpoint("stage.2")

    def read(self, path: str) -> bytes | None:
        """See `Storage`."""
        try:
            with open(self._root / path, "rb", buffering=0) as file:  # noqa: PTH123 - twice as fast
                return file.readall()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def open(self, path: str) -> pa.NativeFile:
        """See `Storage`."""
        return pa.OSFile(str(self._root / path), "rb")

    def files(self, folder: str) -> list[Stored]:
        """See `Storage`."""
        found = []
        for entry in self._scan(folder):
            # A name can go while we look: another thread's clean-up.
            with contextlib.suppress(FileNotFoundError):
                if entry.is_file():
                    found.append(Stored(entry.name, entry.stat().st_size))
        return sorted(found, key=lambda s: s.name)

    def folders(self, folder: str) -> list[str]:
        """See `Storage`."""
        return sorted(e.name for e in self._scan(folder) if e.is_dir())

    def delete(self, path: str) -> None:
        """See `Storage`."""
        (self._root / path).unlink(missing_ok=True)

    def delete_folder(self, folder: str) -> None:
        """See `Storage`."""
        target, gone = self._root / folder, self._temporary / self._unique()
        with self._folders_lock:
            self._durable_folders = {
                f for f in self._durable_folders if not f.is_relative_to(target)
            }
        try:
            target.rename(gone)
        except FileNotFoundError:
            return
        self._sync_visible(target.parent)
        shutil.rmtree(gone)

    def size(self, path: str) -> int | None:
        """See `Storage`."""
        try:
            return (self._root / path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def exists(self, path: str) -> bool:
        """See `Storage`."""
        return (self._root / path).exists()

    def stamp(self, path: str) -> str | None:
        """See `Storage`."""
        try:
            found = (self._root / path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"

    def clear_temporary(self) -> int:
        """Remove what a killed process left unfinished; return how much it was.

        Only for the holder of the data directory's lock. Of others only the supervisor may be
        writing, samples: it tries again if that is taken from it, and may be quicker than we.
        """
        left = list(self._temporary.iterdir())
        for path in left:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return len(left)

    def _unique(self) -> str:
        return str(uuid.UUID(bytes=self._clock.new_id()))

    def _scan(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self._root / folder) as entries:
                return list(entries)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _write(self, path: Path, data: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            self._fsync(descriptor)
        finally:
            os.close(descriptor)

    def _open_new(self, target: Path) -> pa.NativeFile:
        self._make_folder(target.parent)
        try:
            return self._create_empty(target)
        except FileNotFoundError:
            # The folder was dropped by another process since we made it.
            with self._folders_lock:
                self._durable_folders.clear()
            self._make_folder(target.parent)
            return self._create_empty(target)

    def _create_empty(self, target: Path) -> pa.NativeFile:
        try:
            target.touch(exist_ok=False)
        except FileExistsError:
            raise Internal(f"{target.name} would be written twice") from None
        return pa.OSFile(str(target), "wb")

    def _make_folder(self, folder: Path) -> None:
        """Make a folder and its parents durable, whoever made them and was killed before fsync."""
        if folder in self._durable_folders:
            return
        with self._folders_lock:
            try:
                self._make_folders(folder)
            except OSError as e:
                raise _failure(str(folder), e) from e

    def _make_folders(self, folder: Path) -> None:
        if folder in self._durable_folders:
            return
        if folder != self._root:
            self._make_folders(folder.parent)
        folder.mkdir(parents=folder == self._root, exist_ok=True)
        self._sync_path(folder.parent)
        self._durable_folders.add(folder)

    def _sync_path(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            self._fsync(descriptor)
        finally:
            os.close(descriptor)

    def _sync_visible(self, path: Path) -> None:
        try:
            self._sync_path(path)
        except OSError as e:
            raise Corrupt(
                f"{path.name} is visible, but could not be made durable: {e.strerror}",
                hint="Stop, check the disk, start again: a second fsync would lie",
            ) from e


def open_storage(
    place: Path | str, clock: Clock, options: Mapping[str, str] | None = None
) -> Storage:
    """Return the storage at a folder or a URL: `s3://bucket/prefix`, `hdfs://host:port/folder`.

    `options` are those of `objects.ObjectStorage`; HDFS has none. `Invalid` if the URL is not
    understood, or if what is needed for it is not installed.
    """
    if isinstance(place, Path) or "://" not in place:
        return LocalStorage(Path(place), clock)
    extra = "hdfs" if place.startswith("hdfs://") else "s3"
    storage: Storage
    try:
        if extra == "hdfs":
            storage = importlib.import_module("headrace.tables.hdfs").HdfsStorage(place, clock)
        else:
            objects = importlib.import_module("headrace.tables.objects")
            storage = objects.ObjectStorage(place, clock, options)
    except ModuleNotFoundError as e:
        raise Invalid(
            f"{place} needs a library that is not installed: {e.name}",
            hint=f"pip install 'headrace[{extra}]'",
        ) from e
    return storage


def _failure(path: str, error: OSError) -> HeadraceError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return Unavailable(
            f"There is no room for {path}",
            hint="Free space on the disk; nothing was written, it goes on by itself",
            retry_after_s=5.0,
        )
    return Corrupt(
        f"{path} could not be written: {error.strerror or error}",
        hint="Stop, check the disk, start again: what is stored is not known",
    )
