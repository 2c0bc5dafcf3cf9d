"""A Beam file system with the habits of an object store, under `objects://`, in a local folder.

An object appears when its upload is closed, whole; there are no folders and no rename (a call of it
is an error, so that a test would see it). Some calls can be made to fail as a throttled store does.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, ClassVar

from apache_beam.io.filesystem import (
    BeamIOError,
    CompressionTypes,
    FileMetadata,
    FileSystem,
)

ROOT_VARIABLE = "TEST_BUCKET_ROOT"
FAIL_EVERY_VARIABLE = "TEST_BUCKET_FAIL_EVERY"
SCHEME = "objects"


class SlowDownError(Exception):
    """What a throttled store answers."""

    status_code = 503


class _Upload(io.BytesIO):
    def __init__(self, target: Path) -> None:
        super().__init__()
        self._target = target

    def close(self) -> None:
        if not self.closed:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._target.with_name(f".upload-{os.getpid()}-{id(self)}")
            temporary.write_bytes(self.getvalue())
            os.replace(temporary, self._target)
        super().close()


class BucketFileSystem(FileSystem):
    """`objects://name/path` is `$TEST_BUCKET_ROOT/name/path`."""

    calls: ClassVar[int] = 0

    @classmethod
    def scheme(cls) -> str:
        return SCHEME

    def _call(self, path: str) -> Path:
        """Count a call, fail it if its turn has come, and find the object's file."""
        cls = type(self)
        cls.calls += 1
        every = int(os.environ.get(FAIL_EVERY_VARIABLE, "0"))
        if every and cls.calls % every == 0:
            raise BeamIOError("throttled", {path: SlowDownError("slow down")})
        return Path(os.environ[ROOT_VARIABLE]) / path.removeprefix(f"{SCHEME}://")

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path: str) -> tuple[str, str]:
        head, _, tail = path.rpartition("/")
        return head, tail

    def mkdirs(self, path: str) -> None:
        raise AssertionError("an object store has no folders")

    def has_dirs(self) -> bool:
        return False

    def _list(self, dir_or_prefix: str):
        place = self._call(dir_or_prefix)
        root = place if place.is_dir() else place.parent
        found = [path for path in sorted(root.rglob("*")) if path.is_file()]
        for path in found:
            name = f"{SCHEME}://{path.relative_to(os.environ[ROOT_VARIABLE]).as_posix()}"
            if name.startswith(dir_or_prefix) and not path.name.startswith(".upload-"):
                yield FileMetadata(name, path.stat().st_size, path.stat().st_mtime)

    def create(self, path: str, mime_type: str = "", compression_type: Any = None) -> Any:
        return _Upload(self._call(path))

    def open(self, path: str, mime_type: str = "", compression_type: Any = None) -> Any:
        assert compression_type == CompressionTypes.UNCOMPRESSED
        return open(self._call(path), "rb")

    def copy(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        for source, target in zip(source_file_names, destination_file_names, strict=True):
            upload = _Upload(self._call(target))
            upload.write(self._call(source).read_bytes())
            upload.close()

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        raise AssertionError("an object store has no rename")

    def exists(self, path: str) -> bool:
        return self._call(path).is_file()

    def size(self, path: str) -> int:
        return self._call(path).stat().st_size

    def last_updated(self, path: str) -> float:
        return self._call(path).stat().st_mtime

    def checksum(self, path: str) -> str:
        return str(self.size(path))

    def metadata(self, path: str) -> FileMetadata:
        place = self._call(path)
        if not place.is_file():
            raise BeamIOError("no such object", {path: FileNotFoundError(path)})
        return FileMetadata(path, place.stat().st_size, place.stat().st_mtime)

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            self._call(path).unlink()


def register() -> None:
    """Have this process know `objects://`: importing the module is all it takes."""
