"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os

import pytest

from transforms import storage


def test_put_bytes_gives_the_digest_of_what_is_on_disk(tmp_path):
    path = str(tmp_path / "a" / "b.bin")
    data = os.urandom(100_000)
    digest = storage.put_bytes(path, data)
    assert storage.get_bytes(path) == data
    assert digest == storage.FileDigest(100_000, hashlib.sha256(data).hexdigest())
    assert storage.digest_file(path) == digest


def test_open_write_body_raises_leaves_neither_file_nor_temporary(tmp_path):
    path = str(tmp_path / "file")

    def write_half() -> None:
        with storage.open_write(path) as sink:
            sink.write(b"half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_half()
    assert os.listdir(tmp_path) == []


def test_open_write_keeps_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = str(tmp_path / "file")
    storage.put_bytes(path, b"old")
    with storage.open_write(path) as sink:
        sink.write(b"new")
        assert storage.get_bytes(path) == b"old"
    assert storage.get_bytes(path) == b"new"


def test_list_files_names_are_relative_and_temporaries_left_out(tmp_path):
    storage.put_bytes(str(tmp_path / "x" / "y"), b"12")
    storage.put_bytes(str(tmp_path / "z"), b"1")
    (tmp_path / "x" / ".y.abc.tmp").write_bytes(b"half")
    assert storage.list_files(str(tmp_path)) == {"x/y": 2, "z": 1}
    assert storage.list_files(str(tmp_path / "absent")) == {}


def test_delete_of_what_is_gone_is_no_error(tmp_path):
    storage.delete_files([str(tmp_path / "gone")])
    storage.delete_folder(str(tmp_path / "gone"))


def test_join_uses_slashes_everywhere():
    assert storage.join("gs://bucket/out/", "a", "b") == "gs://bucket/out/a/b"
    assert storage.join("/", "a") == "/a"
    assert storage.is_local("/a/b")
    assert not storage.is_local("s3://bucket/a")


class HttpError(Exception):
    """As an object store's client raises it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status_code = status


class WrappedError(OSError):
    """As Beam's BeamIOError wraps errors by path."""

    def __init__(self, inner: Exception) -> None:
        super().__init__("wrapped")
        self.exception_details = {"gs://bucket/a": inner}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ETIMEDOUT, "timed out"),
        OSError(errno.ESTALE, "stale handle"),
        ConnectionResetError(),
        HttpError(503),
        HttpError(429),
        WrappedError(HttpError(500)),
    ],
    ids=repr,
)
def test_retry_error_that_may_pass_is_tried_again(error):
    failures, waits = [error, error], []

    def call() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert storage.retry(call, sleep=waits.append) == "done"
    assert waits == list(storage.RETRY_SECONDS[:2])


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "no space"),
        OSError(errno.EIO, "bad block"),
        FileNotFoundError(),
        PermissionError(),
        HttpError(403),
        WrappedError(HttpError(404)),
        ValueError("a bug"),
    ],
    ids=repr,
)
def test_retry_error_that_stays_is_raised_at_once(error):
    def call() -> None:
        raise error

    with pytest.raises(type(error)):
        storage.retry(call, sleep=lambda _: pytest.fail("waited"))


def test_retry_error_that_does_not_pass_is_raised_in_the_end():
    waits: list[float] = []

    def call() -> None:
        raise TimeoutError("slow")

    with pytest.raises(TimeoutError):
        storage.retry(call, sleep=waits.append)
    assert waits == list(storage.RETRY_SECONDS)
