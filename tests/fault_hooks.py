"""Faults at chosen moments of a command's life, installed in its own process before it starts.

A moment is a system call on a file whose final path matches: so the tests know what is on disk,
not which function of the product wrote it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

MOMENTS = (
    "half",  # half of a write's bytes are in the file
    "synced",  # the file is about to be synced
    "closed",  # whole under its temporary name, or waiting to be moved
    "renamed",  # under its final name
    "removing",  # about to be deleted
)


@dataclass(frozen=True)
class Fault:
    """What happens at the `nth` call of a `moment` on a path that the pattern `path` is found in.

    action: the name of a signal that the process sends itself; the name of an error number, which
    this call and all after it raise; "hold": the process touches `marker` and waits for ever;
    "fill": `marker` grows until its disk is full; "unlink": `marker` is deleted.
    """

    moment: str
    path: str
    action: str = "SIGKILL"
    nth: int = 1
    marker: str = ""

    def __post_init__(self) -> None:
        assert self.moment in MOMENTS


def _hold(marker: Path) -> None:
    marker.touch()
    threading.Event().wait()


def _fill(ballast: Path) -> None:
    with open(ballast, "wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


_ACTS: dict[str, Callable[[Path], None]] = {"hold": _hold, "fill": _fill, "unlink": Path.unlink}


class _Trigger:
    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._pattern = re.compile(fault.path)
        self._seen = 0
        self._lock = threading.Lock()

    def meet(self, moment: str, path: str) -> None:
        fault = self._fault
        if moment != fault.moment or not self._pattern.search(path):
            return
        with self._lock:
            self._seen += 1
            seen = self._seen
        if fault.action.startswith("SIG"):
            if seen == fault.nth:
                os.kill(os.getpid(), getattr(signal, fault.action))
        elif fault.action in _ACTS:
            if seen == fault.nth:
                _ACTS[fault.action](Path(fault.marker))
        elif seen >= fault.nth:
            number = getattr(errno, fault.action)
            raise OSError(number, os.strerror(number), path)

    def wants(self, moment: str) -> bool:
        return moment == self._fault.moment


@dataclass(frozen=True)
class Setup:
    """The `setup` of a `commands.Command`: faults, and a count of the rows that are encoded.

    encoded_log: the expert's calls are counted there, also those of a run that is killed.
    call_seconds: what a call of the expert costs more than it does, as with a real one.
    """

    faults: tuple[Fault, ...] = ()
    encoded_log: str = ""
    call_seconds: float = 0.0

    def __call__(self) -> None:
        if self.faults:
            install([_Trigger(fault) for fault in self.faults])
        if self.encoded_log:
            _log_encoding(self.encoded_log, call_seconds=self.call_seconds)


def install(triggers: Sequence[Any]) -> Callable[[], None]:
    """Patch the calls through which files are written, moved and deleted; returns what undoes it.

    A trigger's `meet(moment, path)` is called at each, and may raise; `wants(moment)` says whether
    it looks at that moment at all.
    """
    from transforms import storage

    def meet(moment: str, path: Any) -> None:
        for trigger in triggers:
            trigger.meet(moment, _final_path(os.fspath(path)))

    plain_write = storage.HashingSink.write
    plain_fsync, plain_replace, plain_remove = os.fsync, os.replace, os.remove
    plain_rmtree = shutil.rmtree
    cuts_writes = any(trigger.wants("half") for trigger in triggers)

    def write(self: Any, data: Any) -> int:
        path = str(getattr(self._sink, "name", ""))
        if not cuts_writes or not path:
            return plain_write(self, data)
        # The product's own write, in two parts, so that its count and checksum hold.
        view = memoryview(data).cast("B")
        plain_write(self, view[: len(view) // 2])
        self._sink.flush()
        meet("half", path)
        plain_write(self, view[len(view) // 2 :])
        return len(view)

    def fsync(descriptor: int) -> None:
        meet("synced", os.readlink(f"/proc/self/fd/{descriptor}"))
        plain_fsync(descriptor)

    def replace(source: Any, target: Any) -> None:
        meet("closed", target)
        plain_replace(source, target)
        meet("renamed", target)

    def remove(path: Any, **kwargs: Any) -> None:
        meet("removing", path)
        plain_remove(path, **kwargs)

    def rmtree(path: Any, **kwargs: Any) -> None:
        meet("removing", path)
        plain_rmtree(path, **kwargs)

    patches = (
        (storage.HashingSink, "write", write),
        (os, "fsync", fsync),
        (os, "replace", replace),
        (os, "remove", remove),
        (shutil, "rmtree", rmtree),
    )
    plain = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
    for owner, name, patch in patches:
        setattr(owner, name, patch)

    def undo() -> None:
        for owner, name, function in plain:
            setattr(owner, name, function)

    return undo


def _final_path(path: str) -> str:
    """A temporary's path as it will be: `folder/.NAME.<hex>.tmp` is `folder/NAME`."""
    folder, _, name = path.rpartition("/")
    found = re.fullmatch(r"\.(.+)\.[0-9a-f]{12}\.tmp", name)
    return f"{folder}/{found[1]}" if found else path


def _log_encoding(path: str, *, call_seconds: float) -> None:
    from transforms.engines import TensorFlowEngine

    plain: Callable[..., Any] = TensorFlowEngine.encode

    def encode(self: Any, inputs: Any) -> Any:
        if call_seconds:
            time.sleep(call_seconds)
        vectors = plain(self, inputs)
        # One appended record a call: whole in the page cache, whatever happens to the process.
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(log, struct.pack("<q", len(vectors)))
        os.close(log)
        return vectors

    TensorFlowEngine.encode = encode  # type: ignore[method-assign]


def count_encoded(log: Path) -> int:
    """Rows that the expert encoded, in all runs that wrote to the log."""
    if not log.exists():
        return 0
    return sum(number for (number,) in struct.iter_unpack("<q", log.read_bytes()))


def rows_in_parts(output: Path) -> int:
    """Rows that have a vector in a whole part file, each counted once."""
    rows: dict[Path, set[int]] = {}
    for path in (output / "_work" / "parts").glob("*/*/*.arrow"):
        if not path.name.startswith("."):
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
            rows.setdefault(path.parent, set()).update(table["row"].to_pylist())
    return sum(map(len, rows.values()))
