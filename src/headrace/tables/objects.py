"""Tables on object storage: S3 and what speaks its language, through the library `obstore`.

An object is put whole or not at all and is durable when the put has returned; reads and lists that
follow see it. A put with `If-None-Match: *` (S3 since 2024) makes an object only if there is none:
that is the fence of `put_new`. A server that takes the header and passes over it would let two
owners commit the same version, so before the first commit it is tried (`prove_fence`).

The answer to a put can be lost after the put went through, and the library asks again by itself. So
each `put_new` carries a word of its own in the object's attributes: where the name turns out to be
taken, or no answer came at all, the object's word says whether it was ours.

There are no folders: one is there while a name begins with it, and it cannot be taken away at once.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import IO, TYPE_CHECKING, Any, cast

import obstore
import pyarrow as pa
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from headrace.model.clock import Clock
from headrace.model.errors import Fenced, HeadraceError, Internal, Invalid, Unavailable
from headrace.model.failpoint import failpoint
from headrace.tables.storage import TEMPORARY, Stored

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_WORD = "headrace-put"
"""Attribute (on S3 `x-amz-meta-headrace-put`) that tells one `put_new` from every other."""
_WHOLE_BYTES_MAX = 16 << 20
"""An object up to this size is read in one request, a larger one range by range."""
_MEMORY_BYTES_MAX = 8 << 20
"""What is being written is kept in memory up to this size, then in a temporary file."""
_PART_BYTES = 16 << 20
_PARTS_AT_ONCE = 4
_PUT_TRIES = 5
_PUT_PAUSE_S = 0.05
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_TIMES: ClientConfig = {
    "connect_timeout": timedelta(seconds=5),
    "timeout": timedelta(seconds=60),
}
# The caller tries again, and knows how often: here only what passes in a moment is waited out.
_RETRIES: RetryConfig = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=20),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=2),
        "base": 2,
    },
}
_CODE = re.compile(r"<Code>(\w+)</Code>\s*<Message>([^<]*)</Message>")
_DENIED = (PermissionDeniedError, UnauthenticatedError)


class ObjectStorage:
    """A prefix of a bucket; see `storage.Storage`.

    `options` are those of `obstore`'s `S3Config` (`endpoint`, `region`, `access_key_id`, …); what
    they leave out is taken from the environment, named as AWS's own tools do (`AWS_REGION`,
    `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, …), then from the machine's role.
    """

    drops_at_once = False

    def __init__(self, url: str, clock: Clock, options: Mapping[str, str] | None = None) -> None:
        """Use the prefix that `url` names, `s3://bucket/prefix`; nothing is asked yet.

        `Invalid` if the URL or an option makes no sense.
        """
        scheme, _, place = url.rstrip("/").partition("://")
        if scheme != "s3" or not place.partition("/")[0]:
            raise Invalid(f"{url} is no storage URL", hint="Write s3://bucket/prefix")
        self._url = f"s3://{place}"
        self._clock = clock
        self._store = _s3_store(self._url, dict(options or {}))
        self._proving = threading.Lock()
        self._is_proven = False

    def uri(self, path: str) -> str:
        """See `Storage`."""
        return f"{self._url}/{path}"

    def put_new(self, path: str, data: bytes, *, new_folder: bool = False) -> None:
        """See `Storage`. There being no folders, `new_folder` changes nothing.

        The order of effects:
        1. make sure, once, that the server keeps the fence;
        2. put the object if there is none: from here it is visible and durable.

        `Unavailable` if no answer came and what is stored cannot be asked: the object may or may
        not be there, so whoever goes on reads it first.
        """
        del new_folder
        self.prove_fence()  # 1
        failpoint("delta.1")
        if not self._put_if_none(path, data):  # 2
            raise Fenced(
                f"Another owner has written {path}",
                hint="Stop this process: its work from here on would be lost",
            )
        failpoint("delta.2")

    def put(self, path: str, data: bytes) -> None:
        """See `Storage`."""
        with self._asking(path, writing=True):
            obstore.put(self._store, path, data, use_multipart=False)

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[pa.NativeFile]:
        """See `Storage`. Nothing is sent before the block has ended well."""
        with tempfile.SpooledTemporaryFile(_MEMORY_BYTES_MAX) as spooled:
            file = cast("IO[bytes]", spooled)
            yield pa.PythonFile(file, mode="w")
            failpoint("stage.1")
            size_bytes = file.tell()
            file.seek(0)
            if size_bytes <= _MEMORY_BYTES_MAX:
                if not self._put_if_none(path, file.read()):
                    raise Internal(f"{path} would be written twice")
            else:
                self._put_parts(path, file)
        failpoint("stage.2")

    def read(self, path: str) -> bytes | None:
        """See `Storage`."""
        try:
            with self._asking(path):
                return obstore.get(self._store, path).bytes().to_bytes()
        except FileNotFoundError:
            return None

    def open(self, path: str) -> pa.NativeFile:
        """See `Storage`."""
        with self._asking(path):
            found = obstore.get(self._store, path)
            size_bytes = found.meta["size"]
            if size_bytes <= _WHOLE_BYTES_MAX:
                return pa.BufferReader(pa.py_buffer(found.bytes()))
        return pa.PythonFile(_Ranges(self, path, size_bytes), mode="r")

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to `end`; FileNotFoundError if there is no such name."""
        with self._asking(path):
            return obstore.get_range(self._store, path, start=start, end=end).to_bytes()

    def files(self, folder: str) -> list[Stored]:
        """See `Storage`."""
        with self._asking(folder):
            found = obstore.list_with_delimiter(self._store, folder)
        names = [Stored(_last(o["path"]), o["size"]) for o in found["objects"]]
        return sorted(names, key=lambda s: s.name)

    def folders(self, folder: str) -> list[str]:
        """See `Storage`."""
        with self._asking(folder):
            found = obstore.list_with_delimiter(self._store, folder)
        return sorted(_last(prefix) for prefix in found["common_prefixes"])

    def delete(self, path: str) -> None:
        """See `Storage`."""
        with self._asking(path), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, path)

    def delete_folder(self, folder: str) -> None:
        """See `Storage`; name by name, in no order."""
        with self._asking(folder):
            for found in obstore.list(self._store, folder):
                obstore.delete(self._store, [o["path"] for o in found])

    def size(self, path: str) -> int | None:
        """See `Storage`."""
        found = self._head(path)
        return None if found is None else cast("int", found["size"])

    def exists(self, path: str) -> bool:
        """See `Storage`."""
        if self._head(path) is not None:
            return True
        with self._asking(path):
            return any(obstore.list(self._store, path, chunk_size=1))

    def stamp(self, path: str) -> str | None:
        """See `Storage`."""
        found = self._head(path)
        return None if found is None else f"{found['e_tag']}-{found['last_modified'].timestamp()}"

    def prove_fence(self) -> None:
        """Try, once, that a second conditional put of a name is refused; `Invalid` if it is not."""
        with self._proving:
            if self._is_proven:
                return
            path = f"{TEMPORARY}/{self._unique()}"
            try:
                first = self._put_if_none(path, b"first")
                second = self._put_if_none(path, b"second")
            finally:
                self.delete(path)
            if not first or second:
                raise Invalid(
                    f"{self._url} does not keep conditional puts (If-None-Match: *)",
                    hint="Two owners could commit at once there: use a storage that keeps them",
                    code="no_conditional_put",
                )
            self._is_proven = True

    def _put_if_none(self, path: str, data: bytes) -> bool:
        """Make an object if there is none; return whether the one that is there is ours."""
        word = self._unique()
        lost: Unavailable | None
        for _ in range(_PUT_TRIES):
            try:
                with self._asking(path, writing=True):
                    obstore.put(
                        self._store,
                        path,
                        data,
                        mode="create",
                        attributes={_WORD: word},
                        use_multipart=False,
                    )
            except (AlreadyExistsError, PreconditionError):
                lost = None
            except Unavailable as e:
                lost = e
            else:
                return True
            found = self._word_of(path)
            if found is not None:
                return found == word
            if lost is not None:
                raise lost
            # S3 answers 409, too, while another put or a deletion of the name is under way.
            self._clock.sleep(_PUT_PAUSE_S)
        raise Unavailable(f"{path} is being written and deleted by others", retry_after_s=1.0)

    def _word_of(self, path: str) -> str | None:
        """Return the word of the object's put, empty if it has none; None if there is no object."""
        try:
            with self._asking(path):
                found = obstore.get(self._store, path, options={"head": True})
        except FileNotFoundError:
            return None
        return found.attributes.get(_WORD, "")

    def _put_parts(self, path: str, file: IO[bytes]) -> None:
        with self._asking(path, writing=True):
            obstore.put(
                self._store,
                path,
                file,
                use_multipart=True,
                chunk_size=_PART_BYTES,
                max_concurrency=_PARTS_AT_ONCE,
            )

    def _head(self, path: str) -> Mapping[str, Any] | None:
        try:
            with self._asking(path):
                return cast("Mapping[str, Any]", obstore.head(self._store, path))
        except FileNotFoundError:
            return None

    def _unique(self) -> str:
        return str(uuid.UUID(bytes=self._clock.new_id()))

    @contextlib.contextmanager
    def _asking(self, path: str, *, writing: bool = False) -> Iterator[None]:
        """Turn the library's errors into ours, but for what the callers here expect."""
        try:
            yield
        except FileNotFoundError as e:
            if not writing:
                raise
            raise self._no_bucket() from e
        except (AlreadyExistsError, PreconditionError):
            raise
        except BaseError as e:
            raise self._failure(path, e) from e

    def _no_bucket(self) -> Invalid:
        bucket = self._url.split("/")[2]
        return Invalid(f"There is no bucket {bucket}", hint="Make it, or mend its name")

    def _failure(self, path: str, error: BaseError) -> HeadraceError:
        text = str(error)
        said = _CODE.search(text)
        code = said[1] if said else ""
        reason = f"{said[1]}: {said[2]}" if said else text.partition("\n")[0]
        if code == "NoSuchBucket":
            return self._no_bucket()
        if isinstance(error, _DENIED) or " 403 Forbidden" in text:
            return Invalid(
                f"{self._url} may not be used: {reason}",
                hint="Check the credentials (AWS_ACCESS_KEY_ID, …) and the bucket's policy",
                code="storage_denied",
            )
        if isinstance(error, NotSupportedError):
            return Invalid(f"{self._url} cannot do what tables need: {reason}")
        return Unavailable(
            f"{self._url} cannot be reached for {path}: {reason}",
            hint="Check the endpoint (AWS_ENDPOINT_URL), the region and the network",
        )


class _Ranges(io.RawIOBase):
    """A large object as a file that asks for the ranges which are read."""

    def __init__(self, storage: ObjectStorage, path: str, size_bytes: int) -> None:
        self._storage = storage
        self._path = path
        self._size_bytes = size_bytes
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size_bytes}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = self._size_bytes if size is None or size < 0 else self._at + size
        end = min(end, self._size_bytes)
        if end <= self._at:
            return b""
        data = self._storage.read_range(self._path, self._at, end)
        self._at += len(data)
        return data


def _s3_store(url: str, options: dict[str, str]) -> S3Store:
    endpoint = options.get("endpoint") or next(
        (os.environ[name] for name in _ENDPOINT_VARIABLES if os.environ.get(name)), ""
    )
    # Who names an endpoint without TLS means it: the library asks to be told twice.
    client: ClientConfig = {**_TIMES, "allow_http": endpoint.startswith("http://")}
    try:
        return S3Store.from_url(
            url, config=cast("Any", options), client_options=client, retry_config=_RETRIES
        )
    except (BaseError, ValueError, TypeError) as e:
        reason = str(e).partition("\n")[0]
        raise Invalid(f"{url} cannot be opened: {reason}", hint="Check its options") from e


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
