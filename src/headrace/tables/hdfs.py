"""Tables on HDFS, through the library `hdfs-native`, which needs no Java.

As on a local disk a name is taken by a rename that fails if the name is there; the name node does
renames one after another. A file is durable once `hsync` has returned: on the disks of all data
nodes that hold it. Names are durable when the name node has answered.
"""

from __future__ import annotations

import contextlib
import io
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
from hdfs_native import Client, FileStatus, FileWriter, WriteOptions

from headrace.model.clock import Clock
from headrace.model.errors import Fenced, Internal, Invalid, Unavailable
from headrace.model.failpoint import failpoint
from headrace.tables.storage import TEMPORARY, Stored

if TYPE_CHECKING:
    from typing_extensions import Buffer

_PIECE_BYTES = 4 << 20
_RETRIES = {
    "dfs.client.failover.max.attempts": "4",
    "dfs.client.failover.sleep.base.millis": "200",
    "dfs.client.failover.sleep.max.millis": "2000",
}
"""How long a name node may be away before that is said: about five seconds, not minutes."""


class HdfsStorage:
    """A folder of HDFS; see `storage.Storage`."""

    drops_at_once = True

    def __init__(self, url: str, clock: Clock) -> None:
        """Use the folder that `url` names, `hdfs://host:port/folder`, made if it is missing.

        The configuration of Hadoop is found as its own tools do, by `HADOOP_CONF_DIR`.
        """
        place = url.rstrip("/").removeprefix("hdfs://")
        host, _, folder = place.partition("/")
        if not host or not folder:
            raise Invalid(f"{url} is no folder of HDFS", hint="Write hdfs://host:port/folder")
        self._url = url.rstrip("/")
        self._root = f"/{folder}"
        self._clock = clock
        with self._asking(url):
            self._client = Client(f"hdfs://{host}", _RETRIES)
            self._client.mkdirs(f"{self._root}/{TEMPORARY}", create_parent=True)

    def uri(self, path: str) -> str:
        """See `Storage`."""
        return f"{self._url}/{path}"

    def put_new(self, path: str, data: bytes, *, new_folder: bool = False) -> None:
        """See `Storage`.

        The order of effects:
        1. write a temporary file, durable;
        2. rename it to its name, which fails if the name is taken: from here it is visible.

        `Unavailable` if the answer to 2 is lost and what is stored cannot be asked.
        """
        target = self._at(path)
        if new_folder:
            self._make_folder(target)
        temporary = self._temporary()
        try:
            with self._asking(path):
                self._write(temporary, data)  # 1
                failpoint("delta.1")
                self._rename(temporary, target)  # 2
        except (FileExistsError, FileNotFoundError):
            raise Fenced(
                f"Another owner has written {path}, or removed its folder",
                hint="Stop this process: its work from here on would be lost",
            ) from None
        finally:
            self._forget(temporary)
        failpoint("delta.2")

    def put(self, path: str, data: bytes) -> None:
        """See `Storage`."""
        target, temporary = self._at(path), self._temporary()
        self._make_folder(target)
        try:
            with self._asking(path):
                self._write(temporary, data)
                self._client.rename(temporary, target, overwrite=True)
        finally:
            self._forget(temporary)

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[pa.NativeFile]:
        """See `Storage`."""
        target = self._at(path)
        with self._asking(path):
            try:
                writer = self._client.create(
                    target, WriteOptions(overwrite=False, create_parent=True)
                )
            except FileExistsError:
                raise Internal(f"{path} would be written twice") from None
        sink = _Sink(writer)
        try:
            with self._asking(path):
                yield pa.PythonFile(sink, mode="w")
                failpoint("stage.1")
                writer.hsync()
                writer.close()
        except BaseException:
            self._forget(target)
            raise
        failpoint("stage.2")

    def read(self, path: str) -> bytes | None:
        """See `Storage`."""
        try:
            with self._asking(path):
                return bytes(self._client.read(self._at(path)).read())
        except FileNotFoundError:
            return None

    def open(self, path: str) -> pa.NativeFile:
        """See `Storage`."""
        with self._asking(path):
            return pa.PythonFile(self._client.read(self._at(path)), mode="r")

    def files(self, folder: str) -> list[Stored]:
        """See `Storage`."""
        found = [Stored(_last(s.path), s.length) for s in self._list(folder) if not s.isdir]
        return sorted(found, key=lambda s: s.name)

    def folders(self, folder: str) -> list[str]:
        """See `Storage`."""
        return sorted(_last(s.path) for s in self._list(folder) if s.isdir)

    def delete(self, path: str) -> None:
        """See `Storage`."""
        with self._asking(path), contextlib.suppress(FileNotFoundError):
            self._client.delete(self._at(path))

    def delete_folder(self, folder: str) -> None:
        """See `Storage`."""
        gone = self._temporary()
        try:
            with self._asking(folder):
                self._rename(self._at(folder), gone)
        except FileNotFoundError:
            return
        with self._asking(folder):
            self._client.delete(gone, recursive=True)

    def size(self, path: str) -> int | None:
        """See `Storage`."""
        found = self._info(path)
        return None if found is None else int(found.length)

    def exists(self, path: str) -> bool:
        """See `Storage`."""
        return self._info(path) is not None

    def stamp(self, path: str) -> str | None:
        """See `Storage`."""
        found = self._info(path)
        return None if found is None else f"{found.modification_time}-{found.length}"

    def _rename(self, source: str, target: str) -> None:
        """Rename; if the answer is lost, the source's being gone says that it was done."""
        try:
            self._client.rename(source, target)
        except (FileExistsError, FileNotFoundError):
            raise
        except OSError:
            try:
                self._client.get_file_info(source)
            except FileNotFoundError:
                return
            raise

    def _write(self, path: str, data: bytes) -> None:
        writer = self._client.create(path, WriteOptions(overwrite=False))
        for at in range(0, len(data), _PIECE_BYTES):
            writer.write(data[at : at + _PIECE_BYTES])
        writer.hsync()
        writer.close()

    def _make_folder(self, target: str) -> None:
        with self._asking(target):
            self._client.mkdirs(target.rpartition("/")[0], create_parent=True)

    def _list(self, folder: str) -> list[FileStatus]:
        try:
            with self._asking(folder):
                return list(self._client.list_status(self._at(folder).rstrip("/")))
        except FileNotFoundError:
            return []

    def _info(self, path: str) -> FileStatus | None:
        try:
            with self._asking(path):
                return self._client.get_file_info(self._at(path))
        except FileNotFoundError:
            return None

    def _forget(self, path: str) -> None:
        """Delete what would otherwise lie about; it does no harm there."""
        with contextlib.suppress(OSError, RuntimeError):
            self._client.delete(path)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _temporary(self) -> str:
        return f"{self._root}/{TEMPORARY}/{uuid.UUID(bytes=self._clock.new_id())}"

    @contextlib.contextmanager
    def _asking(self, path: str) -> Iterator[None]:
        try:
            yield
        except (FileExistsError, FileNotFoundError):
            raise
        except (OSError, RuntimeError) as e:
            reason = str(e).partition("\n")[0]
            raise Unavailable(
                f"{self._url} cannot be reached for {path}: {reason}",
                hint="Check the name node's address and state",
            ) from e


class _Sink(io.RawIOBase):
    """A file being written, as pyarrow wants it: `write` takes any buffer."""

    def __init__(self, writer: FileWriter) -> None:
        self._writer = writer

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        return int(self._writer.write(bytes(data)))


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
