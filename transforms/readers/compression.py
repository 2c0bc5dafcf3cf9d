"""Byte streams over any Beam file system, through gzip, bzip2 or zstd, that notice a cut end.

Beam's own `CompressedFile` returns what it has when a compressed file breaks off, without an
error, so a truncated download would pass for a shorter corpus.
"""

from __future__ import annotations

import bz2
import contextlib
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

import zstandard
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from transforms.readers.base import FileBrokenError

INPUT_BYTES = 256 << 10
PIECE_BYTES = 1 << 20
# zstandard's decompressobj has no bound on its output, and 4 bytes can stand for a 128 KiB block;
# small slices of input keep a hostile file to tens of MiB at a time.
ZSTD_SLICE_BYTES = 2 << 10
# Files of `zstd --long=31` need it; Beam allows the same.
ZSTD_WINDOW_BYTES = 1 << 31


class ByteStream(Protocol):
    """A forward-only stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Return 1 to `size` bytes, or none at the end. Raises: FileBrokenError."""


class _Member(Protocol):
    """One gzip member, bzip2 stream or zstd frame."""

    def feed(self, data: bytes) -> Iterator[bytes]: ...
    @property
    def ended(self) -> bool: ...
    @property
    def rest(self) -> bytes: ...


class _GzipMember:
    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)

    def feed(self, data: bytes) -> Iterator[bytes]:
        while True:
            piece = self._inflate.decompress(data, PIECE_BYTES)
            if piece:
                yield piece
            data = self._inflate.unconsumed_tail
            if self._inflate.eof or not (piece or data):
                return

    @property
    def ended(self) -> bool:
        return self._inflate.eof

    @property
    def rest(self) -> bytes:
        return self._inflate.unused_data


class _Bzip2Member:
    def __init__(self) -> None:
        self._expand = bz2.BZ2Decompressor()

    def feed(self, data: bytes) -> Iterator[bytes]:
        while True:
            try:
                piece = self._expand.decompress(data, PIECE_BYTES)
            except OSError as error:
                # Told apart here from an error of the file system, which may pass.
                raise ValueError(str(error)) from error
            if piece:
                yield piece
            if self._expand.eof or self._expand.needs_input:
                return
            data = b""

    @property
    def ended(self) -> bool:
        return self._expand.eof

    @property
    def rest(self) -> bytes:
        return self._expand.unused_data


class _ZstdMember:
    def __init__(self) -> None:
        window = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
        self._expand = window.decompressobj()
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), ZSTD_SLICE_BYTES):
            stop = start + ZSTD_SLICE_BYTES
            piece = self._expand.decompress(data[start:stop])
            if piece:
                yield piece
            if self._expand.eof:
                self._rest = self._expand.unused_data + data[stop:]
                return

    @property
    def ended(self) -> bool:
        return self._expand.eof

    @property
    def rest(self) -> bytes:
        return self._rest


CODECS: dict[str, Callable[[], _Member]] = {
    "gzip": _GzipMember,
    "bzip2": _Bzip2Member,
    "zstd": _ZstdMember,
}
_MAGIC = {"gzip": (b"\x1f\x8b",), "bzip2": (b"BZh",), "zstd": (b"\x28\xb5\x2f\xfd",)}
SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd", ".zstd": "zstd"}


def sniff_compression(head: bytes) -> str:
    """Tell the codec from a file's first bytes; "none" where there is none."""
    for name, magics in _MAGIC.items():
        if head.startswith(magics):
            return name
    # A skippable frame, with which pzstd and others begin a file: 0x184D2A5? little-endian.
    if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:
        return "zstd"
    return "none"


def expand_head(head: bytes, compression: str) -> bytes:
    """Decompress what the head of a file gives, for a look at its content."""
    if compression == "none":
        return head
    pieces = []
    try:
        for piece in CODECS[compression]().feed(head):
            pieces.append(piece)
            if sum(map(len, pieces)) >= len(head):
                break
    except (zlib.error, ValueError, zstandard.ZstdError):
        pass  # the reader will say it better, with the position
    return b"".join(pieces)


class _Guarded:
    """A raw file whose read errors are `FileBrokenError`."""

    def __init__(self, file: BinaryIO, *, path: str) -> None:
        self._file = file
        self._path = path

    def read(self, size: int, /) -> bytes:
        with _errors_as_broken(self._path):
            return self._file.read(size)


class _Expanded:
    """The decompressed bytes of all members of a file, as if they were one."""

    def __init__(self, raw: ByteStream, *, path: str, compression: str) -> None:
        self._pieces = _expand_members(raw, path=path, compression=compression)
        self._held = b""

    def read(self, size: int, /) -> bytes:
        held = self._held or next(self._pieces, b"")
        piece, self._held = held[:size], held[size:]
        return piece


def _expand_members(raw: ByteStream, *, path: str, compression: str) -> Iterator[bytes]:
    data = raw.read(INPUT_BYTES)
    members = 0
    try:
        while data:
            member = CODECS[compression]()
            while True:
                yield from member.feed(data)
                if member.ended:
                    break
                data = raw.read(INPUT_BYTES)
                if not data:
                    raise FileBrokenError(
                        "truncated_file",
                        f"{path}: its {compression} data breaks off before its end; the copy or "
                        "the download was cut short: fetch the file again",
                    )
            members += 1
            # Tools that write in blocks pad the end with zeros; gzip and tar accept that too.
            data = member.rest.lstrip(b"\0")
            while not data:
                block = raw.read(INPUT_BYTES)
                if not block:
                    return
                data = block.lstrip(b"\0")
    except (zlib.error, ValueError, zstandard.ZstdError) as error:
        where = f"after {members} whole members" if members else "in its first member"
        raise FileBrokenError(
            "corrupt_file",
            f"{path}: not valid {compression} {where} ({error}); fetch or write the file again",
        ) from error


@contextlib.contextmanager
def _errors_as_broken(path: str) -> Iterator[None]:
    try:
        yield
    except (ConnectionError, TimeoutError):
        raise  # may pass: the runner retries the bundle
    except OSError as error:
        raise FileBrokenError(
            "unreadable_file",
            f"{path}: cannot be read ({_plain_error(error)}); check that it is there and that the "
            "workers may read it",
        ) from error


def _plain_error(error: OSError) -> str:
    return error.strerror or type(error).__name__ + (f": {error}" if str(error) else "")


@contextlib.contextmanager
def open_raw(path: str) -> Iterator[BinaryIO]:
    """Open a file of any Beam file system as its bytes are, seekable where the system allows.

    Raises: FileBrokenError if it cannot be opened.
    """
    with _errors_as_broken(path):
        file: BinaryIO = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    try:
        yield file
    finally:
        file.close()


@contextlib.contextmanager
def open_stream(path: str, *, compression: str, offset: int = 0) -> Iterator[ByteStream]:
    """Open a file as a stream of decompressed bytes.

    Args:
      compression: none, gzip, bzip2 or zstd.
      offset: where to begin; only without compression.
    Raises: FileBrokenError, also from `read`.
    """
    with open_raw(path) as file:
        if offset:
            with _errors_as_broken(path):
                file.seek(offset)
        raw = _Guarded(file, path=path)
        if compression == "none":
            yield raw
        else:
            yield _Expanded(raw, path=path, compression=compression)
