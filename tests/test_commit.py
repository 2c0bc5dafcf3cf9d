"""The commit: from any crash the next try goes on, and a reader never sees half an output."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pytest

from transforms import storage
from transforms.commit import (
    OutputState,
    check_files,
    count_rows,
    inspect_output,
    roll_forward,
    write_journal,
)
from transforms.errors import ConservationError, OutputConflictError
from transforms.records import (
    Chunk,
    ChunkKey,
    CorpusTotals,
    FileCount,
    FinishedChunk,
    OutputFile,
    StagedRejects,
)


class CrashError(Exception):
    """Stands for a process that dies."""


def prepare_output(folder: str, contents: dict[str, bytes]) -> list[OutputFile]:
    """Files ready under the work folder, as the assemble pass leaves them."""
    files = []
    for name, data in contents.items():
        path = storage.join(folder, "_work/final", name)
        storage.put_bytes(path, data)
        kind = "rejects" if name.startswith("rejects/") else "vectors"
        digest = hashlib.sha256(data).hexdigest()
        files.append(OutputFile(name, path, 1, len(data), digest, kind=kind))
    return files


def make_manifest(files: list[OutputFile]) -> dict:
    """The part of a manifest that a commit reads back."""
    described = [{"name": one.name, "sha256": one.sha256, "kind": one.kind} for one in files]
    return {
        "files": [one for one in described if one["kind"] == "vectors"],
        "rejects": {"files": [one for one in described if one["kind"] == "rejects"]},
    }


def read_output(folder: str) -> dict[str, bytes] | None:
    """What a careful reader sees: nothing without _SUCCESS, else what the manifest names."""
    if not os.path.exists(f"{folder}/_SUCCESS"):
        return None
    with open(f"{folder}/manifest.json", "rb") as file:
        manifest_bytes = file.read()
    success = json.loads(storage.get_bytes(f"{folder}/_SUCCESS"))
    assert success["manifest_sha256"] == hashlib.sha256(manifest_bytes).hexdigest()
    manifest = json.loads(manifest_bytes)
    found = {}
    for file in (*manifest["files"], *manifest["rejects"]["files"]):
        found[file["name"]] = storage.get_bytes(f"{folder}/{file['name']}")
        assert hashlib.sha256(found[file["name"]]).hexdigest() == file["sha256"]
    return found


OLD = {"part-00000-of-00002.parquet": b"old0", "part-00001-of-00002.parquet": b"old1"}
NEW = {
    "part-00000-of-00002.parquet": b"new zero",
    "part-00001-of-00002.parquet": b"new one",
    "rejects/part-00000-of-00001.jsonl": b"{}\n",
}
OTHER = {"part-00000-of-00001.parquet": b"other"}
STEPS = ("put_bytes", "rename", "delete_files", "delete_folder")


def crash_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let so many changing calls of storage through, then die before the next."""
    left = steps

    def guarded(function):
        def call(*arguments):
            nonlocal left
            if left == 0:
                raise CrashError
            left -= 1
            return function(*arguments)

        return call

    for name in STEPS:
        monkeypatch.setattr(storage, name, guarded(getattr(storage, name)))


@pytest.mark.parametrize("before", [None, OLD, OTHER], ids=["fresh", "same-names", "other-names"])
def test_roll_forward_from_every_crash_point_ends_in_the_new_output(tmp_path, before):
    crashes = 0
    for steps in range(100):
        folder = str(tmp_path / str(steps))
        if before is not None:
            files = prepare_output(folder, before)
            write_journal(folder, files=files, manifest=make_manifest(files), report={})
            roll_forward(folder)
            assert read_output(folder) == before
        files = prepare_output(folder, NEW)
        with pytest.MonkeyPatch.context() as monkeypatch:
            crash_after(monkeypatch, steps)
            try:
                write_journal(folder, files=files, manifest=make_manifest(files), report={})
                roll_forward(folder)
                finished = True
            except CrashError:
                finished = False
                crashes += 1
        seen = read_output(folder)
        assert seen in (before, NEW) or seen is None
        if not finished and inspect_output(folder) is OutputState.COMMITTING:
            roll_forward(folder)
        elif not finished and read_output(folder) != NEW:
            assert steps == 0  # died before the journal: the old output stands
            assert read_output(folder) == before
            continue
        assert read_output(folder) == NEW
        assert inspect_output(folder) is OutputState.COMMITTED
        wanted = {*NEW, "_SUCCESS", "manifest.json", "report.json", "report.html"}
        assert set(storage.list_files(folder)) == wanted
        if finished:
            break
    assert crashes >= len(NEW) + 5


def test_roll_forward_file_missing_is_an_error_that_says_so(tmp_path):
    folder = str(tmp_path)
    files = prepare_output(folder, NEW)
    write_journal(folder, files=files, manifest=make_manifest(files), report={})
    os.remove(files[1].path)
    with pytest.raises(OutputConflictError, match=r"lacks part-00001-of-00002\.parquet"):
        roll_forward(folder)
    assert not os.path.exists(f"{folder}/_SUCCESS")


def test_inspect_output_tells_states_apart(tmp_path):
    assert inspect_output(str(tmp_path / "absent")) is OutputState.ABSENT
    (tmp_path / "empty").mkdir()
    assert inspect_output(str(tmp_path / "empty")) is OutputState.ABSENT
    storage.put_bytes(str(tmp_path / "foreign" / "letter.txt"), b"dear")
    assert inspect_output(str(tmp_path / "foreign")) is OutputState.FOREIGN
    storage.put_bytes(str(tmp_path / "stopped" / "_work" / "run.json"), b"{}")
    assert inspect_output(str(tmp_path / "stopped")) is OutputState.INTERRUPTED


def finished_chunk(vectors: int, rejects: int, rows_read: int) -> FinishedChunk:
    staged = StagedRejects("p", rejects, (("blank_text", rejects),))
    chunk = Chunk(ChunkKey(0, 0), "p", "", vectors, rows_read, 0, b"", (), staged)
    counts = (FileCount(0, rows_read, rejects, vectors),)
    return FinishedChunk(chunk, (), np.arange(vectors, dtype=np.int32), 0, 0, counts, (staged,))


def test_count_rows_sums_that_match_pass():
    counts = count_rows([finished_chunk(8, 2, 10)], CorpusTotals(rows_read=10))
    assert (counts.vectors, counts.reject_count) == (8, 2)
    assert counts.files == (FileCount(0, 10, 2, 8),)


@pytest.mark.parametrize(
    ("chunk", "rows_read"),
    [
        pytest.param(finished_chunk(8, 2, 10), 11, id="a-row-was-read-and-is-nowhere"),
        pytest.param(finished_chunk(8, 1, 10), 10, id="a-file-lacks-a-row"),
        pytest.param(finished_chunk(9, 2, 10), 10, id="a-row-too-many"),
    ],
)
def test_count_rows_sums_that_differ_raise(chunk, rows_read):
    with pytest.raises(ConservationError):
        count_rows([chunk], CorpusTotals(rows_read=rows_read))


def test_check_files_rows_that_differ_raise():
    counts = count_rows([finished_chunk(8, 2, 10)], CorpusTotals(rows_read=10))
    vectors = OutputFile("a", "a", 8, 0, "")
    rejects = OutputFile("b", "b", 2, 0, "", kind="rejects")
    check_files([vectors, rejects], counts)
    with pytest.raises(ConservationError, match="hold 8 vectors and 0 rejects"):
        check_files([vectors], counts)
