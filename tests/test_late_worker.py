"""A worker that outlives its run must change nothing."""

from __future__ import annotations

import orjson
import pytest

from transforms import lock, storage
from transforms.errors import OutputConflictError


def test_check_own_run_of_another_or_none_stops_the_worker(tmp_path):
    output = str(tmp_path)
    with pytest.raises(OutputConflictError, match="none is"):
        lock.check_own(output, "mine")
    storage.put_bytes(storage.join(output, lock.RUN_FILE), orjson.dumps({"run_id": "other"}))
    with pytest.raises(OutputConflictError, match="other"):
        lock.check_own(output, "mine")
    storage.put_bytes(storage.join(output, lock.RUN_FILE), orjson.dumps({"run_id": "mine"}))
    lock.check_own(output, "mine")


def test_hold_lock_file_removed_by_a_commit_meanwhile_is_a_conflict(tmp_path, monkeypatch):
    output = str(tmp_path)
    opened = lock._open_lock

    def open_and_lose(path: str) -> int:
        descriptor = opened(path)
        storage.delete_files([path])  # the commit of the run that held it
        return descriptor

    monkeypatch.setattr(lock, "_open_lock", open_and_lose)
    with pytest.raises(OutputConflictError, match="finished in it this moment"), lock.hold(output):
        pytest.fail("the lock was taken")


def test_hold_twice_names_the_run_that_holds_it(tmp_path):
    output = str(tmp_path)
    with lock.hold(output):
        record = lock.describe_self("work")
        storage.put_bytes(storage.join(output, lock.RUN_FILE), orjson.dumps(record))
        with pytest.raises(OutputConflictError) as error, lock.hold(output):
            pytest.fail("the lock was taken twice")
    for part in (record["host"], str(record["pid"]), record["start"]):
        assert part in str(error.value)
    with lock.hold(output):  # free again
        assert lock.read_run(output) == record
