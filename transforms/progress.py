"""How far the workers are: small facts on disk, which the launcher reads while the run goes on.

Each worker process has one file of its own under `_work/progress/` with sums since its start, and
writes it again at most every half second (every half minute on an object store). No runner has to
know of it, and nothing depends on it: a file that is lost or late only makes the display late.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from transforms import storage

PROGRESS_FOLDER = "_work/progress"
TOTALS_FILE = "_work/totals.json"
COUNTED_FILE = "_work/counted.json"

_LOCAL_SECONDS = 0.5
_REMOTE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What was done since the run started; sums, so those of all workers add up.

    rows_skipped: rows that were staged before or taken over; tokens_known: tokens of the
    rows_tokenized; rows_failed: rows that were rejected while encoding.
    """

    rows_read: int = 0
    rows_rejected: int = 0
    rows_skipped: int = 0
    rows_tokenized: int = 0
    tokens_known: int = 0
    rows_encoded: int = 0
    tokens_encoded: int = 0
    padded_tokens: int = 0
    rows_failed: int = 0
    rows_assembled: int = 0

    def __add__(self, other: Facts) -> Facts:
        return Facts(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


class FactsFile:
    """One process's file of facts; threads may share it."""

    def __init__(self, output: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._is_local = storage.is_local(output)
        self._clock = clock
        self._interval = _LOCAL_SECONDS if self._is_local else _REMOTE_SECONDS
        self._lock = threading.Lock()
        self._facts = Facts()
        self._written = clock() - self._interval
        # A pid alone may come again, on another host or after a restart.
        name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
        self._path = storage.join(output, PROGRESS_FOLDER, name)
        if self._is_local:
            with contextlib.suppress(OSError):
                os.makedirs(os.path.dirname(self._path), exist_ok=True)

    def add(self, facts: Facts) -> None:
        """Count something; now and then the file is written."""
        with self._lock:
            self._facts += facts
            now = self._clock()
            if now - self._written < self._interval:
                return
            self._written = now
            data = orjson.dumps(asdict(self._facts))
        # What a disk or a store has against it is told by the files that matter.
        with contextlib.suppress(Exception):
            self._write(data)

    def _write(self, data: bytes) -> None:
        if not self._is_local:
            with storage.open_write(self._path) as sink:  # put_bytes would wait and try again
                sink.write(data)
            return
        # Not synced: after a crash nobody wants it. Not made again once the commit cleared up.
        folder, name = os.path.split(self._path)
        temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:12]}.tmp")
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, self._path)


_FILES: dict[tuple[str, int], FactsFile] = {}
_FILES_LOCK = threading.Lock()


def record(output: str, facts: Facts) -> None:
    """Count what this process did for the run of an output."""
    key = (output, os.getpid())  # a fork must not write to its parent's file
    with _FILES_LOCK:
        file = _FILES.get(key)
        if file is None:
            file = _FILES[key] = FactsFile(output)
    file.add(facts)


def clear(output: str) -> None:
    """Forget what an earlier run of this output left, on disk and in this process."""
    with _FILES_LOCK:
        _FILES.pop((output, os.getpid()), None)
    folder = storage.join(output, PROGRESS_FOLDER)
    storage.delete_files([storage.join(folder, name) for name in storage.list_files(folder)])
    storage.delete_files([storage.join(output, name) for name in (TOTALS_FILE, COUNTED_FILE)])


def mark(output: str, name: str, facts: dict[str, Any]) -> None:
    """Write down that a pass is over, when, and what came of it."""
    body = {**facts, "time": time.time()}
    storage.put_bytes(storage.join(output, name), orjson.dumps(body))


def read_mark(output: str, name: str) -> dict[str, Any] | None:
    """What `mark` wrote, or None where that pass is not over."""
    return read_json(storage.join(output, name))


def read_facts(output: str) -> Facts:
    """The sum of all workers' facts."""
    folder = storage.join(output, PROGRESS_FOLDER)
    total = Facts()
    for name in sorted(storage.list_files(folder)):
        body = read_json(storage.join(folder, name))
        if body is not None:
            total += Facts(**{key: int(body.get(key, 0)) for key in Facts.__slots__})
    return total


def read_json(path: str) -> dict[str, Any] | None:
    """A JSON object, or None if there is none (yet)."""
    try:
        body = orjson.loads(storage.get_bytes(path))
    except (OSError, orjson.JSONDecodeError):
        return None
    return body if isinstance(body, dict) else None
