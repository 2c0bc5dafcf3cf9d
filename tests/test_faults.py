"""Faults of all kinds in the real command: nothing is lost, nothing stands twice.

`FAULT_KILLS=50` sets the number of random kills. Figures are printed at the end of the session.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import commands, fault_experts
from tests.fault_hooks import Fault, install, rows_in_parts
from tests.fault_jobs import (
    CHUNK_ROWS,
    Found,
    Job,
    assert_same,
    make_rows,
    read_found,
    write_rows,
)

pytestmark = pytest.mark.integration

KILLS = int(os.environ.get("FAULT_KILLS", "12"))
WIDTH = 32
ROWS = 10_000
BLANK_EVERY = 500
ROWS_PER_FILE = 3000
FILES = 4

SPOOL = r"/_work/spool/"
PARTS = r"/_work/parts/"
FINAL = r"/_work/final/part-"
FINAL_REJECTS = r"/_work/final/rejects/"
JOURNAL = r"/_work/commit\.json$"
# The move of an assembled file to its place in the output; rejects are the last.
MOVED = r"/out/(rejects/)?part-"


@dataclass(frozen=True)
class Experts:
    """Flags of each expert, by name."""

    folder: Path

    def flags(self, name: str) -> list[str]:
        return [
            f"--expert={self.folder / name}",
            f"--preprocessor={self.folder / 'preprocessor'}",
        ]


@pytest.fixture(scope="module")
def experts(tmp_path_factory, bert_vocabulary) -> Experts:
    folder = tmp_path_factory.mktemp("experts")
    fault_experts.build_preprocessor(folder / "preprocessor", vocab_file=bert_vocabulary)
    for name, build in (
        ("free", fault_experts.build_free_expert),
        ("poison", fault_experts.build_poison_expert),
        ("hungry", fault_experts.build_hungry_expert),
        ("nan", fault_experts.build_nan_expert),
    ):
        build(folder / name, vocab_file=bert_vocabulary, width=WIDTH)
    return Experts(folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """10,000 rows, 20 of them blank: three chunks."""
    rows = make_rows(ROWS, blank_every=BLANK_EVERY)
    return write_rows(tmp_path_factory.mktemp("corpus") / "rows.jsonl", rows)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory, experts, corpus) -> Found:
    """What an undisturbed run gives."""
    job = make_job(tmp_path_factory.mktemp("wanted"), corpus, experts)
    result = job.run()
    assert result.code == 0, result.err
    found = read_found(job.output)
    assert len(found.ids) == ROWS - ROWS // BLANK_EVERY
    assert len(found.rejects) == ROWS // BLANK_EVERY
    assert len(np.unique(found.vectors, axis=0)) == len(found.ids)
    assert job.encoded == len(found.ids)
    assert len(list(job.output.glob("part-*"))) == FILES
    return found


def make_job(folder: Path, corpus: Path | str, experts: Experts, *flags: str, **kwargs: Any) -> Job:
    flags = (f"--rows_per_file={ROWS_PER_FILE}", *flags)
    return Job(folder, corpus, experts.flags("free"), flags, **kwargs)


@pytest.fixture
def job(tmp_path, corpus, experts) -> Job:
    return make_job(tmp_path, corpus, experts)


@pytest.fixture
def tell(record_property) -> Callable[[str], None]:
    """Tell a figure; `conftest` prints them all at the end of the session."""
    return functools.partial(record_property, "figure")


# SIGKILL


STEPS = {
    "first spool file half-written": Fault("half", SPOOL),
    "second spool file renamed": Fault("renamed", SPOOL, nth=2),
    "first part half-written": Fault("half", PARTS),
    "first part closed": Fault("closed", PARTS),
    "first part renamed": Fault("renamed", PARTS),
    "last part closed": Fault("closed", PARTS, nth=3),
    "last part renamed": Fault("renamed", PARTS, nth=3),
    "first final file half-written": Fault("half", FINAL),
    "final rejects half-written": Fault("half", FINAL_REJECTS),
    "before the journal": Fault("closed", JOURNAL),
    "after the journal": Fault("renamed", JOURNAL),
    **{f"move {n} of {FILES + 1}": Fault("closed", MOVED, nth=n) for n in range(1, FILES + 2)},
    "after the last move": Fault("renamed", MOVED, nth=FILES + 1),
    "before the manifest": Fault("closed", r"/out/manifest\.json$"),
    "after the manifest": Fault("renamed", r"/out/manifest\.json$"),
    "before _SUCCESS": Fault("closed", r"/out/_SUCCESS$"),
    "after _SUCCESS": Fault("renamed", r"/out/_SUCCESS$"),
    "half-way through the cleaning up": Fault("removing", r"/_work/", nth=6),
}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.replace(" ", "-"))
def test_run_killed_at_a_named_step_goes_on_to_the_same_output(job, wanted, step):
    fault = STEPS[step]
    assert job.run(faults=[fault]).code == -signal.SIGKILL
    before = job.encoded
    in_journal = (job.output / "_work" / "commit.json").exists()
    in_parts = rows_in_parts(job.output)
    job.finish(wanted)
    missing = 0 if in_journal else len(wanted.ids) - in_parts
    assert job.encoded - before == missing
    assert job.encoded - len(wanted.ids) <= CHUNK_ROWS


@pytest.mark.timeout(120 + 20 * KILLS)
def test_run_killed_at_random_moments_goes_on_to_the_same_output(
    tmp_path_factory, tmp_path, experts, tell
):
    rows = make_rows(30_000, seed=2, blank_every=BLANK_EVERY)
    corpus = write_rows(tmp_path / "rows.jsonl", rows)
    # A call costs some milliseconds more than nothing, so that encoding is half of the run.
    first = make_job(tmp_path_factory.mktemp("first"), corpus, experts, call_seconds=0.01)
    assert first.run().code == 0
    reference = read_found(first.output)
    # The first command may have waited for the imports; the second tells how long one takes.
    started = time.monotonic()
    assert replace(first, folder=tmp_path_factory.mktemp("second")).run().code == 0
    duration = time.monotonic() - started
    rng = random.Random(3)
    kills = commits = encoded = 0
    job = None
    while kills < KILLS or job is not None:
        if job is None:
            job = replace(first, folder=tmp_path_factory.mktemp("killed"))
        command = job.start()
        # The last job is left to finish; any other is killed again and again until it commits.
        command.process.join(rng.uniform(0, duration) if kills < KILLS else 120)
        if command.process.exitcode is None:
            command.process.kill()
            kills += 1
        result = command.wait()
        # Killed after the commit, the output is committed all the same.
        journal = job.output / "_work" / "commit.json"
        done = (job.output / "_SUCCESS").exists() and not journal.exists()
        assert result.code == -signal.SIGKILL or (result.code == 0 and done), result.err
        if done:
            assert_same(read_found(job.output), reference)
            commits += 1
            encoded += job.encoded
            job = None
    assert kills == KILLS
    needed = commits * len(reference.ids)
    tell(
        f"{kills} kills over {commits} outputs of {len(reference.ids):,} vectors: "
        f"{encoded - needed:,} rows encoded twice, {(encoded - needed) / kills:,.0f} a kill, "
        f"{(encoded - needed) / needed:.1%} of all"
    )
    assert needed <= encoded <= needed + kills * CHUNK_ROWS


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_run_interrupted_says_how_to_go_on_and_goes_on(job, wanted, name):
    result = job.run(faults=[Fault("renamed", PARTS, action=name)])
    assert result.code == 130
    assert "run the same command to go on" in result.err
    assert "Traceback" not in result.err
    assert rows_in_parts(job.output) >= CHUNK_ROWS - 20
    job.finish(wanted)
    assert job.encoded - len(wanted.ids) <= CHUNK_ROWS


@pytest.mark.parametrize(
    ("step", "whole"),
    [
        (Fault("closed", JOURNAL), True),
        (Fault("closed", MOVED, nth=2), False),
    ],
    ids=["before-the-journal", "move-2"],
)
def test_overwrite_killed_keeps_the_old_output_or_goes_on_to_the_new(
    job, wanted, tmp_path, step, whole
):
    write_rows(tmp_path / "old.jsonl", make_rows(5000, seed=9))
    old = replace(job, inputs=tmp_path / "old.jsonl")
    assert old.run("--rows_per_file=1000").code == 0
    before = read_found(job.output)
    assert job.run("--overwrite", faults=[step]).code == -signal.SIGKILL
    assert (job.output / "_SUCCESS").exists() == whole
    if whole:
        assert_same(read_found(job.output, leftovers=True), before)
    job.finish(wanted, "--overwrite")


def find_workers(parent: int) -> list[int]:
    """Processes of a worker module (Beam's, or one of ours around it) below a process."""
    children: dict[int, list[int]] = {}
    workers = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            command = (path.parent / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        pid = int(path.parent.name)
        children.setdefault(int(fields[1]), []).append(pid)
        # Not the shell that Beam starts it through, whose command line names the module as well.
        if command[1:2] == [b"-m"] and b"worker" in command[2]:
            workers.add(pid)
    below, found = [parent], []
    while below:
        pid = below.pop()
        below += children.get(pid, [])
        found += [pid] if pid in workers else []
    return found


def wait_for(command: commands.Command, condition: Callable[[], Any]) -> Any:
    """Wait until something holds that no event tells of; the command must be running."""
    while not (found := condition()):
        command.process.join(0.005)
        assert command.process.exitcode is None, command.wait().err
    return found


def test_run_one_worker_process_killed_ends_clearly_and_goes_on(
    tmp_path, experts, corpus, wanted, tell
):
    flags = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    job = make_job(tmp_path, corpus, experts, *flags)
    command = job.start()
    workers = wait_for(command, lambda: find_workers(command.pid))
    wait_for(command, lambda: list((job.output / "_work" / "parts").rglob("*.arrow")))
    os.kill(workers[0], signal.SIGKILL)
    killed = time.monotonic()
    result = command.wait(seconds=100)
    tell(
        f"a worker process killed: exit {result.code} {time.monotonic() - killed:.1f} s later, "
        f"{rows_in_parts(job.output):,} rows in parts"
    )
    assert result.code in (0, 1), result.err
    if result.code == 1:
        assert "run the same command to go on" in result.err
        assert not (job.output / "_SUCCESS").exists()
        # With the same two processes: what one process and two encode is the same.
        job.finish(wanted)
    else:
        assert_same(read_found(job.output), wanted)


@pytest.mark.parametrize(
    "flags",
    [
        ["--rows_per_file=1700"],
        ["--batch_tokens=256"],
        ["--direct_running_mode=multi_threading", "--direct_num_workers=3"],
        ["--rows_per_file=100000", "--batch_tokens=16384", "--threads=1"],
    ],
    ids=["files", "batch", "threads", "all"],
)
def test_rerun_with_other_workers_batches_and_files_gives_the_same(job, wanted, flags):
    assert job.run(faults=[Fault("renamed", PARTS)]).code == -signal.SIGKILL
    in_parts = rows_in_parts(job.output)
    job.finish(wanted, *flags)
    counts = commands.read_report(job.output)["counts"]
    assert in_parts == counts["rows_resumed"] > 0
    assert counts["rows_encoded"] == counts["vectors"] - in_parts


def test_rerun_finds_a_damaged_part_and_encodes_it_again(job, wanted):
    assert job.run(faults=[Fault("renamed", PARTS, nth=2)]).code == -signal.SIGKILL
    part = next((job.output / "_work" / "parts").rglob("*.arrow"))
    whole = rows_in_parts(job.output)
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    before = job.encoded
    job.finish(wanted)
    assert commands.read_report(job.output)["counts"]["rows_resumed"] < whole
    assert CHUNK_ROWS - 20 <= job.encoded - before - (len(wanted.ids) - whole) <= CHUNK_ROWS


# Storage that fails


ERRORS = {
    "run.json": (Fault("half", r"/_work/run\.json$", "EIO"), "EIO"),
    "spool": (Fault("half", SPOOL, "EIO", nth=2), "EIO"),
    "read rejects": (Fault("half", r"/_work/rejects/", "ENOSPC"), "ENOSPC"),
    "part": (Fault("synced", PARTS, "EIO", nth=2), "EIO"),
    "assembled file": (Fault("half", FINAL, "EIO", nth=2), "EIO"),
    "assembled rejects": (Fault("synced", FINAL_REJECTS, "EIO"), "EIO"),
    "journal": (Fault("synced", JOURNAL, "EIO"), "EIO"),
    "move": (Fault("closed", MOVED, "EIO", nth=2), "EIO"),
    "manifest": (Fault("half", r"/out/manifest\.json$", "EIO"), "EIO"),
    "_SUCCESS": (Fault("synced", r"/out/_SUCCESS$", "EIO"), "EIO"),
}


@pytest.mark.parametrize("place", ERRORS, ids=lambda place: place.replace(" ", "-"))
def test_run_write_that_fails_is_told_and_the_rerun_goes_on(job, wanted, place):
    fault, name = ERRORS[place]
    result = job.run(faults=[fault])
    check_failure(result, job, name=name)
    job.finish(wanted)
    assert job.encoded - len(wanted.ids) <= CHUNK_ROWS


def check_failure(result: commands.Result, job: Job, *, name: str) -> None:
    """Exit 1, the cause and the way on in words, and no output."""
    causes = {"EIO": "Input/output error", "ENOSPC": "No space left on device"}
    assert result.code == 1, result.err
    assert causes[name] in result.err
    assert "run the same command to go on" in result.err
    assert "Traceback" not in result.err
    assert not (job.output / "_SUCCESS").exists()


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 64 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"this user may not mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize(
    ("moment", "path", "nth"),
    [
        ("renamed", SPOOL, 1),
        ("renamed", PARTS, 1),
        ("renamed", FINAL, 2),
        ("renamed", FINAL, FILES),
        ("renamed", MOVED, FILES + 1),
        ("renamed", r"/out/report\.json$", 1),
        ("renamed", r"/out/manifest\.json$", 1),
    ],
    ids=["rejects", "parts", "assembly", "journal", "report", "manifest", "success"],
)
def test_run_disk_that_fills_is_told_and_goes_on_with_space(
    small_disk, experts, corpus, wanted, moment, path, nth
):
    # What the commands say must not go to the full disk.
    job = make_job(small_disk.parent / "says", corpus, experts, at=small_disk / "out")
    ballast = small_disk / "ballast"
    fill = Fault(moment, path, "fill", nth=nth, marker=str(ballast))
    result = job.run(faults=[fill])
    check_failure(result, job, name="ENOSPC")
    assert ballast.stat().st_size > 0
    ballast.unlink()
    job.finish(wanted)
    assert job.encoded - len(wanted.ids) <= CHUNK_ROWS


# Input that fails or changes


def write_files(folder: Path, rows: list[dict[str, Any]], *, files: int) -> Path:
    """The rows as so many files; the glob that finds them."""
    folder.mkdir()
    for number in range(files):
        part = rows[len(rows) * number // files : len(rows) * (number + 1) // files]
        write_rows(folder / f"rows-{number}.jsonl", part)
    return folder / "*.jsonl"


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [dangle, become_folder])
def test_run_file_in_a_glob_that_cannot_be_read_is_named_before_any_work(tmp_path, experts, spoil):
    job = make_job(tmp_path, write_files(tmp_path / "in", make_rows(300), files=3), experts)
    spoil(tmp_path / "in" / "rows-1.jsonl")
    result = job.run()
    assert result.code == 2, result.err
    assert "rows-1.jsonl" in result.err
    assert "Traceback" not in result.err
    assert not (job.output / "_SUCCESS").exists()


def test_run_file_that_vanishes_after_the_start_ends_the_run_or_is_a_reject(tmp_path, experts):
    rows = make_rows(300)
    job = make_job(tmp_path, write_files(tmp_path / "in", rows, files=3), experts)
    spoilt = tmp_path / "in" / "rows-1.jsonl"
    content = spoilt.read_bytes()
    fault = Fault("renamed", r"/_work/run\.json$", "unlink", marker=str(spoilt))
    result = job.run(faults=[fault])
    assert result.code == 2, result.err
    assert "rows-1.jsonl" in result.err
    assert job.encoded == 0
    spoilt.write_bytes(content)
    result = job.run("--on_bad_file=reject", faults=[fault])
    assert result.code == 0, result.err
    found = read_found(job.output)
    assert found.ids == [row["id"] for row in (*rows[:100], *rows[200:])]
    assert found.rejects == [(None, "unreadable_file")]


def test_rerun_over_a_changed_corpus_equals_a_fresh_run_and_keeps_unchanged_chunks(
    tmp_path, experts
):
    rows = make_rows(4 * CHUNK_ROWS)
    corpus = write_rows(tmp_path / "rows.jsonl", rows)
    job = make_job(tmp_path / "job", corpus, experts)
    assert job.run(faults=[Fault("renamed", PARTS, nth=4)]).code == -signal.SIGKILL
    assert job.encoded == len(rows)
    # Changed in the second chunk, removed in the last, added at the end.
    rows[CHUNK_ROWS + 5]["text"] = "another text"
    del rows[3 * CHUNK_ROWS + 7 : 3 * CHUNK_ROWS + 17]
    rows += [{"id": f"new-{n}", "text": f"{n} that was added"} for n in range(30)]
    write_rows(corpus, rows)
    fresh = make_job(tmp_path / "fresh", corpus, experts)
    assert fresh.run().code == 0
    reference = read_found(fresh.output)
    assert reference.ids == [row["id"] for row in rows]
    before = job.encoded
    job.finish(reference)
    assert job.encoded - before == len(rows) - 2 * CHUNK_ROWS


# Readers and writers at the same time


def commit_often(output: str, generations: int) -> None:
    """Commit and overwrite an output; each generation's files all say its number."""
    from transforms import storage
    from transforms.commit import roll_forward, write_journal
    from transforms.records import OutputFile

    for generation in range(generations):
        files = []
        for name in ("part-00000-of-00002.parquet", f"part-{generation % 3:05d}-of-00009.parquet"):
            path = storage.join(output, "_work/final", name)
            data = f"{generation} ".encode() * 20_000
            digest = storage.put_bytes(path, data)
            files.append(OutputFile(name, path, 1, digest.size_bytes, digest.sha256))
        listed = [
            {"name": one.name, "sha256": one.sha256, "bytes": one.size_bytes} for one in files
        ]
        manifest = {"files": listed, "rejects": {"files": []}, "generation": generation}
        write_journal(output, files=files, manifest=manifest, report={})
        roll_forward(output)


def read_consistently(output: Path, read: Callable[[bytes], Any]) -> Any:
    """What a reader by the protocol sees: `read(manifest)`, or None if a commit came between.

    The protocol: `_SUCCESS` is the same before and after, and names the manifest.
    """

    def success() -> bytes | None:
        try:
            return (output / "_SUCCESS").read_bytes()
        except FileNotFoundError:
            return None

    before = success()
    if before is None:
        return None
    try:
        found, fault = read(before), None
    except (OSError, AssertionError, ValueError) as error:
        found, fault = None, error
    if success() != before:
        return None
    if fault is not None:
        raise fault
    return found


def test_reader_polling_during_100_commits_sees_whole_outputs_only(tmp_path, tell):
    generations = 100
    output = tmp_path / "out"

    def read(success: bytes) -> int:
        manifest_bytes = (output / "manifest.json").read_bytes()
        manifest_sha256 = hashlib.sha256(manifest_bytes).hexdigest()
        assert json.loads(success)["manifest_sha256"] == manifest_sha256
        manifest = json.loads(manifest_bytes)
        for file in manifest["files"]:
            data = (output / file["name"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == file["sha256"]
            assert set(data.split()) == {str(manifest["generation"]).encode()}
        return int(manifest["generation"])

    context = multiprocessing.get_context("forkserver")
    writer = context.Process(target=commit_often, args=(str(output), generations))
    writer.start()
    seen: list[int] = []
    polls = 0
    while writer.exitcode is None:
        polls += 1
        generation = read_consistently(output, read)
        if generation is not None:
            seen.append(generation)
    writer.join()
    assert writer.exitcode == 0
    assert read_consistently(output, read) == generations - 1
    assert seen == sorted(seen)
    assert len(set(seen)) >= 5, "the reader saw too little to tell"
    tell(f"{polls} polls during {generations} commits: {len(seen)} whole outputs, 0 half")


def test_reader_polling_during_real_overwrites_sees_the_old_or_the_new(job, wanted, tmp_path):
    write_rows(tmp_path / "old.jsonl", make_rows(2000, seed=9))
    old = replace(job, inputs=tmp_path / "old.jsonl")
    assert old.run("--rows_per_file=1000").code == 0
    before = read_found(job.output)
    seen = []
    for run, result in ((job, wanted), (old, before)):
        command = run.start("--overwrite", "--rows_per_file=1000")
        while command.process.exitcode is None:
            found = read_consistently(job.output, lambda _: read_found(job.output, leftovers=True))
            if found is not None:
                seen.append(found)
                assert_same(found, wanted if len(found.ids) == len(wanted.ids) else before)
        assert command.wait().code == 0
        assert_same(read_found(job.output), result)
    assert len(seen) >= 2


def test_second_run_on_an_output_that_is_written_is_refused_and_takes_over_from_a_dead_one(
    job, wanted
):
    marker = job.folder / "holding"
    first = job.start(faults=[Fault("renamed", PARTS, "hold", marker=str(marker))])
    wait_for(first, marker.exists)
    second = job.run()
    assert second.code == 3
    assert f"host {socket.gethostname()}" in second.err
    assert f"process {first.pid}" in second.err
    start = json.loads((job.output / "_work" / "run.json").read_bytes())["start"]
    assert f"since {start}" in second.err
    first.process.kill()
    assert first.wait().code == -signal.SIGKILL
    result = job.finish(wanted)
    assert f"resuming the run of {start}" in result.err
    assert job.encoded == len(wanted.ids)


# Experts that fail


@pytest.mark.parametrize("place", ["spread", "clustered"])
def test_run_poison_rows_are_the_only_rejects(tmp_path, experts, tell, place):
    marked = [500 + 1000 * n if place == "spread" else 5000 + n for n in range(10)]
    rows = make_rows(10_000, marked=marked)
    corpus = write_rows(tmp_path / "rows.jsonl", rows)
    clean = make_job(tmp_path / "clean", corpus, experts)
    assert clean.run().code == 0
    job = replace(clean, folder=tmp_path / "job", expert_flags=experts.flags("poison"))
    result = job.run()
    assert result.code == 0, result.err
    found, reference = read_found(job.output), read_found(clean.output)
    assert found.rejects == [(rows[n]["id"], "encoder_failed") for n in marked]
    kept = np.setdiff1d(np.arange(len(rows)), marked)
    assert found.ids == [rows[n]["id"] for n in kept]
    np.testing.assert_allclose(found.vectors, reference.vectors[kept], rtol=0, atol=1e-5)
    poisoned, plain = (commands.read_report(one.output)["encoding"] for one in (job, clean))
    tell(
        f"10 poison rows of 10,000, {place}: {poisoned['batches_halved']} batches halved, encoding "
        f"took {poisoned['encode_seconds'] / plain['encode_seconds']:.2f} times as long"
    )


def test_run_rows_without_a_number_are_rejects(tmp_path, experts):
    marked = [17, 4099]
    rows = make_rows(5000, marked=marked)
    corpus = write_rows(tmp_path / "rows.jsonl", rows)
    job = replace(make_job(tmp_path, corpus, experts), expert_flags=experts.flags("nan"))
    result = job.run()
    assert result.code == 0, result.err
    found = read_found(job.output)
    assert found.rejects == [(rows[n]["id"], "not_finite") for n in marked]
    assert found.ids == [row["id"] for n, row in enumerate(rows) if n not in marked]
    assert np.isfinite(found.vectors).all()


def test_run_expert_out_of_memory_completes_in_smaller_batches(job, wanted, experts):
    # One halving, from 1,024 padded tokens to the 512 that fit: TensorFlow waits 10 s for memory
    # before it gives up on an allocation.
    hungry = replace(job, expert_flags=experts.flags("hungry"))
    result = hungry.run("--batch_tokens=1024")
    assert result.code == 0, result.err
    assert_same(read_found(hungry.output), wanted)
    assert 0 < commands.read_report(hungry.output)["encoding"]["batches_halved"] <= 2


# Any crash point


class CrashError(Exception):
    """Stands for the death of the process: once it is raised, no write goes through any more."""


class Crash:
    """A trigger that dies at the `after`th moment, of any kind and path."""

    def __init__(self, after: int | None) -> None:
        self.left = after
        self.moments = 0

    def wants(self, moment: str) -> bool:
        return True

    def meet(self, moment: str, path: str) -> None:
        if "/out/" not in path:
            return
        self.moments += 1
        if self.left is not None and self.moments > self.left:
            raise CrashError


def run_here(job: Job, *flags: str, after: int | None = None) -> tuple[int, int]:
    """Run the command in this process; its exit code, and the moments at which it could die."""
    from pipeline.launch import run_command

    crash = Crash(after)
    undo = install([crash])
    try:
        # It would silence the logs of the tests that come after.
        with mock.patch("pipeline.launch.quiet_libraries"):
            return run_command(job.arguments(*flags)), crash.moments
    finally:
        undo()


@pytest.fixture(scope="module")
def small(tmp_path_factory, experts) -> tuple[Job, Found, int]:
    """A job of two chunks, what it gives, and at how many moments it can die."""
    folder = tmp_path_factory.mktemp("small")
    rows = make_rows(CHUNK_ROWS + 500, seed=5, blank_every=BLANK_EVERY)
    job = make_job(folder, write_rows(folder / "rows.jsonl", rows), experts)
    code, moments = run_here(job)
    assert code == 0
    return job, read_found(job.output), moments


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    crashes=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    workers=st.integers(1, 3),
    batch_tokens=st.sampled_from([64, 1000, 4096, 50_000]),
    rows_per_file=st.sampled_from([900, 2000, 100_000]),
)
def test_any_crash_points_workers_and_batches_give_the_same_result(
    tmp_path_factory, small, crashes, workers, batch_tokens, rows_per_file
):
    job, reference, moments = small
    job = replace(job, folder=tmp_path_factory.mktemp("crashed"))
    flags = [
        "--direct_running_mode=multi_threading",
        f"--direct_num_workers={workers}",
        f"--batch_tokens={batch_tokens}",
        f"--rows_per_file={rows_per_file}",
    ]
    for share in crashes:
        code, _ = run_here(job, *flags, after=int(share * moments))
        assert code in (0, 1)
        if code == 0 or not (job.output / "_work").exists():
            break
    if not (job.output / "_SUCCESS").exists() or (job.output / "_work").exists():
        code, _ = run_here(job, *flags)
        assert code == 0
    assert_same(read_found(job.output), reference)
