"""Files where the work is: local disk, gs://, s3:// or any other Beam file system.

Local files are made durable (fsync of file and folder) and appear whole, by rename. Object stores
make an object visible only when its upload is complete, which is the same promise. A call that
fails for a reason that may pass (the network, a throttled store) is made again, with growing waits.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import io
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, BinaryIO, TypeVar, cast

import pyarrow as pa

_COPY_BYTES = 4 << 20
# The name that `open_write` gives a file until it is whole.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# Waits, in seconds, before a call is tried again that failed for a reason that may pass.
RETRY_SECONDS = (0.5, 2.0, 8.0, 30.0)
# What a network file system or a busy machine reports; a full disk or a bad block is not here.
_PASSING = frozenset(
    {
        errno.EAGAIN,
        errno.EINTR,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.EPIPE,
    }
)
_FINAL_STATUSES = frozenset({400, 401, 403, 404, 405, 410, 412})


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size and checksum of a file's bytes; `sha256` in hex."""

    size_bytes: int
    sha256: str


class HashingSink(io.RawIOBase):
    """A sequential binary sink that counts and hashes what passes through to `sink`."""

    def __init__(self, sink: IO[bytes]) -> None:
        super().__init__()
        self._sink = sink
        self._hash = hashlib.sha256()
        self._size_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._sink.write(cast(bytes, view))
        self._hash.update(view)
        self._size_bytes += len(view)
        return len(view)

    def tell(self) -> int:
        return self._size_bytes

    def flush(self) -> None:
        """Leave flushing to the sink: a flush of each row group would cost a system call."""

    def digest(self) -> FileDigest:
        """The digest of everything written so far."""
        return FileDigest(self._size_bytes, self._hash.hexdigest())


def may_pass(error: BaseException) -> bool:
    """Whether an error of a file system is one that a later try may not meet.

    An HTTP status decides where the error, or one inside a BeamIOError, has one; else errno does.
    """
    inner = getattr(error, "exception_details", None)
    if isinstance(inner, Mapping) and inner:
        return all(isinstance(one, BaseException) and may_pass(one) for one in inner.values())
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return False
    status = _http_status(error)
    if status is not None:
        return status not in _FINAL_STATUSES
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING


def _http_status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore's ClientError
        response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for found in (getattr(error, "status_code", None), getattr(error, "code", None), response):
        if isinstance(found, int) and 100 <= found < 600:
            return found
    return None


def retry(call: Callable[[], _Result], *, sleep: Callable[[float], None] = time.sleep) -> _Result:
    """Call, and call again after a while if it fails for a reason that may pass.

    `call` must be one that can be made twice.
    """
    for seconds in RETRY_SECONDS:
        try:
            return call()
        except Exception as error:
            if not may_pass(error):
                raise
            _LOG.warning("storage is tried again in %s s: %s", seconds, error)
        sleep(seconds)
    return call()


def is_local(path: str) -> bool:
    """Whether `path` names a file of this machine rather than `scheme://...`."""
    return "://" not in path


def join(base: str, *parts: str) -> str:
    """Join with `/` on every file system."""
    return "/".join([base.rstrip("/") if base != "/" else "", *parts])


def _filesystems() -> Any:
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


def make_folder(path: str) -> None:
    """Make a local folder and its parents; object stores have none to make."""
    if is_local(path):
        os.makedirs(path, exist_ok=True)


def sync_folder(path: str) -> None:
    """Make renames in a local folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folders(folder: str, *, names: Iterable[str]) -> None:
    """Make the renames of files below a folder durable; `names` are relative to it."""
    if is_local(folder):
        for found in sorted({os.path.dirname(os.path.join(folder, name)) for name in names}):
            sync_folder(found)


@contextlib.contextmanager
def open_write(path: str) -> Iterator[HashingSink]:
    """Write a file that appears under `path` whole, or not at all.

    Local: a temporary sibling, synced, then renamed; removed if the body raises. Elsewhere the
    object is created under its own name: give a name that nobody reads before it is complete.
    """
    if not is_local(path):
        with _filesystems().create(path, mime_type="application/octet-stream") as remote:
            yield HashingSink(remote)
        return
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/.{os.path.basename(path)}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield HashingSink(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def put_bytes(path: str, data: bytes | memoryview | pa.Buffer) -> FileDigest:
    """Write `data` under `path`, whole and durable; writing it again is harmless."""

    def put() -> FileDigest:
        with open_write(path) as sink:
            sink.write(data)
        return sink.digest()

    return retry(put)


def open_read(path: str) -> BinaryIO:
    """Open a file's own bytes for reading, compressed or not."""
    if is_local(path):
        return open(path, "rb")
    from apache_beam.io.filesystem import CompressionTypes

    opened = _filesystems().open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return cast(BinaryIO, opened)


def get_bytes(path: str) -> bytes:
    """A file's bytes."""

    def get() -> bytes:
        with open_read(path) as file:
            return file.read()

    return retry(get)


def open_arrow(path: str) -> pa.NativeFile:
    """Open a file for Arrow's readers; local ones are memory-mapped."""
    if is_local(path):
        return pa.memory_map(path, "r")
    return pa.BufferReader(get_bytes(path))


@contextlib.contextmanager
def open_seekable(path: str) -> Iterator[pa.NativeFile]:
    """Open a file for reading here and there; only what is read is fetched."""
    if is_local(path):
        with pa.OSFile(path, "rb") as local:
            yield local
        return
    with open_read(path) as remote, pa.PythonFile(remote, "r") as wrapped:
        yield wrapped


def match(pattern: str) -> list[str]:
    """The files that match a glob, sorted; none is no error."""
    if is_local(pattern):
        return sorted(glob.glob(pattern))
    matched = retry(lambda: _filesystems().match([pattern]))[0].metadata_list
    return sorted(found.path for found in matched)


def same_path(one: str, other: str) -> bool:
    """Whether two names stand for one place."""
    if is_local(one) and is_local(other):
        return os.path.realpath(one) == os.path.realpath(other)
    return one.rstrip("/") == other.rstrip("/")


def digest_file(path: str) -> FileDigest:
    """Read a file once and return its size and sha256."""

    def read() -> FileDigest:
        digest, size_bytes = hashlib.sha256(), 0
        with open_read(path) as file:
            while block := file.read(_COPY_BYTES):
                digest.update(block)
                size_bytes += len(block)
        return FileDigest(size_bytes, digest.hexdigest())

    return retry(read)


def exists(path: str) -> bool:
    """Whether a file (or, locally, a folder) of that name is there."""
    if is_local(path):
        return os.path.exists(path)
    return bool(retry(lambda: _filesystems().exists(path)))


def list_files(folder: str) -> dict[str, int]:
    """Files below `folder`, at any depth: name relative to the folder → size in bytes.

    Temporary files of writers (`.….tmp`) are left out. A folder that is not there is empty.
    """
    if is_local(folder):
        found: dict[str, int] = {}
        for root, _, names in os.walk(folder):
            for name in names:
                if name.startswith(".") and name.endswith(".tmp"):
                    continue
                path = os.path.join(root, name)
                with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                    found[os.path.relpath(path, folder).replace(os.sep, "/")] = os.path.getsize(
                        path
                    )
        return found
    prefix = folder.rstrip("/") + "/"
    matched = retry(lambda: _filesystems().match([prefix + "**"]))[0].metadata_list
    return {file.path[len(prefix) :]: file.size_in_bytes for file in matched}


def rename(source: str, target: str) -> None:
    """Move a file; a copy and a delete where the store has no rename."""
    if is_local(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(source, target)
        return
    retry(lambda: _filesystems().copy([source], [target]))
    delete_files([source])


def delete_files(paths: list[str]) -> None:
    """Delete files; those that are gone already are no error."""
    for path in paths:
        if is_local(path):
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
        elif exists(path):
            retry(partial(_filesystems().delete, [path]))


def delete_temporaries(folder: str) -> None:
    """Delete what killed writers left directly in a local folder; other stores keep nothing."""
    if not is_local(folder):
        return
    for name in os.listdir(folder):
        if _TEMPORARY.fullmatch(name):
            delete_files([join(folder, name)])


def empty_folder(path: str, *, keep: str) -> None:
    """Delete all below a folder, temporaries too, but the file of that name directly in it."""
    if not is_local(path):
        delete_files([join(path, name) for name in list_files(path) if name != keep])
        return
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(path):
            inside = join(path, name)
            if os.path.isdir(inside):
                delete_folder(inside)
            elif name != keep:
                delete_files([inside])


def delete_folder(path: str) -> None:
    """Delete a folder and all below it; one that is gone already is no error."""
    if is_local(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        delete_files([join(path, name) for name in list_files(path)])
