"""Runs the product's commands as processes of their own, without paying for the imports each time.

The standard library's fork server has Beam and TensorFlow imported (nothing of TensorFlow has run
in it); each command is a fork of it with its own pid, that can be killed like any other.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

_PRELOADED = ["apache_beam", "tensorflow", "tensorflow_text", "tensorflow_hub", "pipeline.build"]


@dataclass
class Result:
    """How a command ended: exit code (minus the signal's number if killed), and what it said."""

    code: int
    out: str
    err: str


class Command:
    """A command that runs."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        folder: Path,
        module: str = "pipeline.run",
        env: Mapping[str, str] | None = None,
        setup: Callable[[], None] | None = None,
    ) -> None:
        """Start `python -m module arguments` in `folder`; `setup` runs first in its process."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob(".command-*.out")))
        self._out = folder / f".command-{number}.out"
        self._err = folder / f".command-{number}.err"
        self.process = context.Process(
            target=_child,
            args=(module, list(arguments), str(folder), dict(env or {}), setup),
            kwargs={"out": str(self._out), "err": str(self._err)},
        )
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, *, seconds: float = 240) -> Result:
        """Wait for the end; a command that hangs is killed and fails the test."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {seconds} s: {self._err.read_text()}")
        assert self.process.exitcode is not None
        return Result(self.process.exitcode, self._out.read_text(), self._err.read_text())


def _child(
    module: str,
    arguments: list[str],
    folder: str,
    env: dict[str, str],
    setup: Callable[[], None] | None,
    *,
    out: str,
    err: str,
) -> None:
    os.environ.update(env)
    os.chdir(folder)
    for descriptor, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - open until the process ends
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    if setup is not None:
        setup()
    import importlib

    code = importlib.import_module(module).main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(arguments: Sequence[str], *, folder: Path, **kwargs: Any) -> Result:
    """Run `python -m pipeline.run arguments` to its end."""
    return Command(arguments, folder=folder, **kwargs).wait()


def read_rows(output: Path) -> dict[str, dict[str, Any]]:
    """The rows of a committed Parquet output by id; fails on a doubled id or no commit."""
    assert (output / "_SUCCESS").exists()
    rows: dict[str, dict[str, Any]] = {}
    for file in read_manifest(output)["files"]:
        for row in pq.read_table(output / file["name"]).to_pylist():
            assert row["id"] not in rows, f"id {row['id']} stands twice"
            rows[row["id"]] = row
    return rows


def read_manifest(output: Path) -> dict[str, Any]:
    """The manifest of a committed output."""
    loaded: dict[str, Any] = json.loads((output / "manifest.json").read_bytes())
    return loaded


def read_report(output: Path) -> dict[str, Any]:
    """The report of a committed output."""
    loaded: dict[str, Any] = json.loads((output / "report.json").read_bytes())
    return loaded


def read_rejects(output: Path) -> list[dict[str, Any]]:
    """The rejects of a committed output, in order."""
    return [
        json.loads(line)
        for file in read_manifest(output)["rejects"]["files"]
        for line in (output / file["name"]).read_text(encoding="utf-8").splitlines()
    ]
