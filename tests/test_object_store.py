"""Runs whose input and output are on an object store: no rename, no folders, throttling."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests import bucket, commands
from tests.test_run import assert_same_vectors, expert_flags, make_texts, vectors_by_id

pytestmark = pytest.mark.integration

ROWS = 6000


def die_at_upload(ending: str) -> None:
    """SIGKILL this process before the first object whose name ends so is visible."""
    plain = bucket.BucketFileSystem.create

    def create(self, path: str, *args, **kwargs):
        if path.endswith(ending):
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, path, *args, **kwargs)

    bucket.BucketFileSystem.create = create


def die_at_manifest() -> None:
    die_at_upload("/manifest.json")


def die_at_part() -> None:
    die_at_upload("part-00001-of-00003.parquet")


@pytest.fixture
def store(tmp_path) -> Path:
    root = tmp_path / "store"
    (root / "in").mkdir(parents=True)
    lines = [
        json.dumps({"id": f"r{n:05d}", "text": text}) for n, text in enumerate(make_texts(ROWS))
    ]
    (root / "in" / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@pytest.fixture
def run(tmp_path, store, tiny_expert):
    def run_job(*more: str, setup=bucket.register, fail_every: int = 0, output: str = "out"):
        env = {bucket.ROOT_VARIABLE: str(store), bucket.FAIL_EVERY_VARIABLE: str(fail_every)}
        flags = ["--id_field=id", "--rows_per_file=2000", *expert_flags(tiny_expert), *more]
        if output == "local":
            arguments = [f"--input={store}/in/rows.jsonl", "--output=local", *flags]
        else:
            arguments = ["--input=objects://in/*.jsonl", f"--output=objects://{output}", *flags]
        return commands.run(arguments, folder=tmp_path, env=env, setup=setup)

    return run_job


@pytest.fixture
def wanted(run, tmp_path):
    result = run(output="local")
    assert result.code == 0, result.err
    return vectors_by_id(tmp_path / "local")


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


WHOLE = {
    *(f"part-0000{n}-of-00003.parquet" for n in range(3)),
    *("manifest.json", "report.json", "report.html", "_SUCCESS"),
}


@pytest.mark.parametrize("die", [die_at_part, die_at_manifest], ids=["at-a-part", "at-manifest"])
def test_run_on_an_object_store_killed_in_the_commit_goes_on(run, store, wanted, die):
    killed = run(setup=die)
    assert killed.code == -signal.SIGKILL
    assert not (store / "out" / "_SUCCESS").exists()
    result = run()
    assert result.code == 0, result.err
    assert names_in(store / "out") == WHOLE
    assert_same_vectors(vectors_by_id(store / "out"), wanted)


def test_run_on_a_throttled_object_store_loses_no_row(run, store, wanted):
    result = run(fail_every=9)
    assert result.code == 0, result.err
    assert names_in(store / "out") == WHOLE
    assert_same_vectors(vectors_by_id(store / "out"), wanted)
    assert commands.read_report(store / "out")["counts"]["rejects"] == {}


def test_run_on_an_object_store_overwrites_and_reuses(run, store, wanted):
    assert run(output="dt/1").code == 0
    assert run(output="dt/1").code == 3
    result = run("--reuse_from=objects://dt/*", output="dt/2")
    assert result.code == 0, result.err
    assert commands.read_report(store / "dt" / "2")["counts"]["rows_reused"] == ROWS
    assert run("--overwrite", "--pooling=cls", output="dt/1").code == 0
    assert names_in(store / "dt" / "1") == WHOLE
    assert_same_vectors(vectors_by_id(store / "dt" / "2"), wanted)
