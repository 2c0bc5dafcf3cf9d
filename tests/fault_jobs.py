"""Jobs for the fault tests: a corpus, a command that is killed and run again, and the checks."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tests import commands
from tests.fault_experts import MARKED_WORD
from tests.fault_hooks import Fault, Setup, count_encoded

# `records.RowLimits.chunk_rows`: what a killed run may lose of its encoding, with an expert that
# takes less than `EncodeSettings.checkpoint_seconds` for it.
CHUNK_ROWS = 4096

WORDS = ("the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "as", "was", "music")


def make_rows(
    count: int, *, seed: int = 1, blank_every: int = 0, marked: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """Rows with texts that differ; some blank (rejects), some with the experts' marked word."""
    rng = random.Random(seed)
    chosen = set(marked)
    rows = []
    for number in range(count):
        words = [str(number), *rng.choices(WORDS, k=rng.randint(1, 12))]
        if number in chosen:
            words.append(MARKED_WORD)
        blank = blank_every and number % blank_every == blank_every - 1
        rows.append({"id": f"row-{number:06d}", "text": " " if blank else " ".join(words)})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Found:
    """A committed output: ids in order, vectors [N, H], and (id, reason) of each reject."""

    ids: list[str]
    vectors: npt.NDArray[np.float32]
    rejects: list[tuple[str | None, str]]


def read_found(output: Path, *, leftovers: bool = False) -> Found:
    """Read a committed output as a careful reader, and check that it is whole.

    Args:
      leftovers: whether the folder may hold more than the output's files, such as those of a run
        that is going to overwrite it.
    """
    manifest_bytes = (output / "manifest.json").read_bytes()
    success = json.loads((output / "_SUCCESS").read_bytes())
    assert success["manifest_sha256"] == hashlib.sha256(manifest_bytes).hexdigest()
    manifest = json.loads(manifest_bytes)
    files = [*manifest["files"], *manifest["rejects"]["files"]]
    for file in files:
        data = (output / file["name"]).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (file["sha256"], file["bytes"])
    if not leftovers:
        about = {"manifest.json", "report.json", "report.html", "_SUCCESS"}
        there = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
        assert there - about == {file["name"] for file in files}
    tables = [pq.read_table(output / file["name"]) for file in manifest["files"]]
    assert [len(table) for table in tables] == [file["rows"] for file in manifest["files"]]
    table = pa.concat_tables(tables)
    ids = table["id"].to_pylist()
    assert len(set(ids)) == len(ids), "an id stands twice"
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    rejects = [
        (row["id"], row["reason"])
        for file in manifest["rejects"]["files"]
        for row in map(json.loads, (output / file["name"]).read_text("utf-8").splitlines())
    ]
    return Found(ids, flat.reshape(len(ids), -1), rejects)


def assert_same(found: Found, wanted: Found) -> None:
    """The same ids in the same order, vectors to 1e-5, and the same rejects."""
    assert found.ids == wanted.ids
    np.testing.assert_allclose(found.vectors, wanted.vectors, rtol=0, atol=1e-5)
    assert found.rejects == wanted.rejects


@dataclass(frozen=True)
class Job:
    """One command, to be run until it commits `at`, which is `folder/out` if None."""

    folder: Path
    inputs: Path | str
    expert_flags: Sequence[str]
    flags: Sequence[str] = ()
    call_seconds: float = 0.0
    at: Path | None = None

    @property
    def output(self) -> Path:
        """Where the vectors go."""
        return self.at or self.folder / "out"

    @property
    def log(self) -> Path:
        """Where the expert's calls are counted."""
        return self.folder / "encoded.log"

    def arguments(self, *more: str) -> list[str]:
        return [
            f"--input={self.inputs}",
            "--id_field=id",
            f"--output={self.output}",
            *self.expert_flags,
            *self.flags,
            *more,
        ]

    def start(self, *more: str, faults: Sequence[Fault] = ()) -> commands.Command:
        """Start the command; what its expert encodes is counted, if it is one process."""
        setup = Setup(tuple(faults), str(self.log), self.call_seconds)
        return commands.Command(self.arguments(*more), folder=self.folder, setup=setup)

    def run(self, *more: str, faults: Sequence[Fault] = ()) -> commands.Result:
        """Run the command to its end."""
        return self.start(*more, faults=faults).wait(seconds=120)

    def finish(self, wanted: Found, *more: str) -> commands.Result:
        """Run the command undisturbed; it must commit what is wanted."""
        result = self.run(*more)
        assert result.code == 0, result.err
        assert_same(read_found(self.output), wanted)
        return result

    @property
    def encoded(self) -> int:
        """Rows that the expert encoded so far, those of killed runs too."""
        return count_encoded(self.log)
