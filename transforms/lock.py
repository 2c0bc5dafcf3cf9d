"""One writer an output: who is at work in it, and whether he is still alive."""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import orjson

from transforms import storage
from transforms.errors import ConfigError, OutputConflictError

RUN_FILE = "_work/run.json"
LOCK_FILE = "_work/lock"


def describe_self(identity: str) -> dict[str, Any]:
    """What `_work/run.json` says of this run."""
    return {
        "identity": identity,
        "run_id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def read_run(output: str) -> dict[str, Any] | None:
    """Who worked in an output last, or None."""
    path = storage.join(output, RUN_FILE)
    if not storage.exists(path):
        return None
    try:
        found = orjson.loads(storage.get_bytes(path))
    except orjson.JSONDecodeError:  # a run that died while it wrote its first file
        return None
    return found if isinstance(found, dict) else None


def check_own(output: str, run_id: str) -> None:
    """Stop a worker of a run that another has taken over from, or that is committed already.

    Raises: OutputConflictError.
    """
    found = (read_run(output) or {}).get("run_id")
    if found != run_id:
        raise OutputConflictError(
            f"{output}: run {run_id} is not the one at work here any more "
            f"({found or 'none is'}); this late worker stops and changes nothing"
        )


@contextlib.contextmanager
def hold(output: str) -> Iterator[None]:
    """Hold a local output's lock; the system frees it when the process ends, however it ends.

    Raises:
      OutputConflictError: another run is alive in it; names host, process and start.
      ConfigError: the output cannot be written to.
    """
    if not storage.is_local(output):
        yield
        return
    import fcntl

    path = storage.join(output, LOCK_FILE)
    try:
        descriptor = _open_lock(path)
    except OSError as error:
        raise ConfigError(
            f"--output={output}: cannot be written to ({error.strerror}); choose a folder on a "
            "disk with room that you may write to"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = read_run(output) or {}
            raise OutputConflictError(
                f"--output={output}: another run is writing it (host {other.get('host', '?')}, "
                f"process {other.get('pid', '?')}, since {other.get('start', '?')}). Wait for it, "
                "stop it, or write to another folder"
            ) from error
        if not _is_at(path, descriptor):
            raise OutputConflictError(
                f"--output={output}: another run finished in it this moment; look at what it "
                "wrote, then run again if need be"
            )
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: str) -> int:
    storage.make_folder(os.path.dirname(path))
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def _is_at(path: str, descriptor: int) -> bool:
    """Whether an open file is still the one of that name: a commit removes the lock's file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
