"""Downloads: once, whole, patiently, and with errors that help."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hub_server import HubServer, Reply, make_tiny_models, pack_folder
from transforms import hub, savedmodel
from transforms.errors import ExpertError
from transforms.experts import EXPERTS, HUB_ADDRESS

PATH = "/google/experts/bert/wiki_books/2"
ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.integration


@pytest.fixture(scope="session")
def models() -> tuple[Path, Path]:
    return make_tiny_models()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(folder))
    monkeypatch.delenv("TFHUB_MODEL_LOAD_FORMAT", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return folder


@pytest.fixture
def server(models: tuple[Path, Path]) -> Iterator[HubServer]:
    with HubServer.for_experts(*models) as running:
        yield running


class Clock:
    """Stands in for sleep, and remembers."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)


def list_leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix in (".tmp", ".lock"))


def test_resolve_absent_model_downloads_it_whole_and_once(server: HubServer, cache: Path) -> None:
    handle = server.address + PATH
    first = hub.resolve(handle)
    second = hub.resolve(handle)
    assert first == second == hub.entry_path(handle)
    assert savedmodel.find_fault(first) is None
    assert savedmodel.fingerprint_model(first) == savedmodel.fingerprint_model(
        str(server.models[PATH])
    )
    assert server.requests == {PATH: 1}
    assert list_leftovers(cache) == []


def test_resolve_entry_name_is_the_one_of_tensorflow_hub(server: HubServer, cache: Path) -> None:
    import tensorflow_hub

    handle = server.address + PATH
    ours = hub.resolve(handle)
    assert tensorflow_hub.resolve(handle) == ours
    assert server.requests == {PATH: 1}


def test_resolve_server_errors_are_retried_with_growing_waits(
    server: HubServer, cache: Path
) -> None:
    clock, lines = Clock(), []
    server.reply(PATH, Reply(status=500), Reply(status=503), Reply(status=429))
    path = hub.resolve(server.address + PATH, sleep=clock, progress=lines.append)
    assert savedmodel.find_fault(path) is None
    assert clock.waits == [1.0, 2.0, 4.0]
    assert server.requests == {PATH: 4}
    assert any("503" in line and "attempt 3 of 5" in line for line in lines)


def test_resolve_retry_after_is_waited_for(server: HubServer, cache: Path) -> None:
    clock = Clock()
    server.reply(PATH, Reply(status=429, headers=(("Retry-After", "17"),)))
    hub.resolve(server.address + PATH, sleep=clock)
    assert clock.waits == [17.0]


def test_resolve_server_that_stays_broken_fails_after_its_attempts(
    server: HubServer, cache: Path
) -> None:
    clock = Clock()
    server.always_reply(PATH, Reply(status=500))
    handle = server.address + PATH
    with pytest.raises(ExpertError, match=r"3 attempts.*HTTP status 500") as caught:
        hub.resolve(handle, sleep=clock, retry=hub.RetryPolicy(attempts=3))
    assert handle in str(caught.value)
    assert clock.waits == [1.0, 2.0]
    assert server.requests == {PATH: 3}


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "access is refused"), (403, "access is refused"), (404, "check spelling and version")],
)
def test_resolve_refused_fails_at_once_and_names_handle_and_remedy(
    server: HubServer, cache: Path, status: int, remedy: str
) -> None:
    clock = Clock()
    server.always_reply(PATH, Reply(status=status))
    handle = server.address + PATH
    with pytest.raises(ExpertError) as caught:
        hub.resolve(handle, sleep=clock)
    message = str(caught.value)
    assert f"cannot fetch {handle}: HTTP status {status}" in message
    assert f"asked {handle}?tf-hub-format=compressed; " in message
    assert remedy in message
    assert clock.waits == []
    assert server.requests == {PATH: 1}
    assert list_leftovers(cache) == []


def test_resolve_web_page_for_archive_fails_at_once_naming_handle(
    server: HubServer, cache: Path
) -> None:
    clock = Clock()
    server.always_reply(PATH, Reply(body=b"<html>Please log in</html>" * 400))
    with pytest.raises(ExpertError, match="not a usable model archive") as caught:
        hub.resolve(server.address + PATH, sleep=clock)
    assert server.address + PATH in str(caught.value)
    assert "wanted a .tar.gz" in str(caught.value)
    assert clock.waits == []
    assert list_leftovers(cache) == []


def test_resolve_dropped_connection_is_retried(server: HubServer, cache: Path) -> None:
    clock = Clock()
    server.reply(PATH, Reply(kept=0.5, is_honest=False))
    path = hub.resolve(server.address + PATH, sleep=clock)
    assert savedmodel.find_fault(path) is None
    assert clock.waits == [1.0]


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
def test_resolve_archive_that_is_cut_off_fails_and_leaves_nothing(
    server: HubServer, cache: Path, kept: float
) -> None:
    server.always_reply(PATH, Reply(kept=kept))
    with pytest.raises(ExpertError, match="not a usable model archive") as caught:
        hub.resolve(server.address + PATH, sleep=Clock())
    assert server.address + PATH in str(caught.value)
    assert not os.path.exists(hub.entry_path(server.address + PATH))
    assert list_leftovers(cache) == []


def test_resolve_archive_without_model_fails_naming_what_is_missing(
    server: HubServer, cache: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "readme.txt").write_text("no model here")
    server.models[PATH] = other
    with pytest.raises(ExpertError, match=r"no whole SavedModel: it has no saved_model\.pb"):
        hub.resolve(server.address + PATH, sleep=Clock())
    assert not os.path.exists(hub.entry_path(server.address + PATH))


def test_resolve_archive_that_climbs_out_is_refused(
    server: HubServer, cache: Path, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo("../../escaped.txt")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"bad"))
    server.always_reply(PATH, Reply(body=buffer.getvalue()))
    with pytest.raises(ExpertError, match="not a usable model archive"):
        hub.resolve(server.address + PATH, sleep=Clock())
    assert not list(tmp_path.rglob("escaped.txt"))


def test_resolve_nobody_listening_fails_after_retries(cache: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        # Bound but not listening: a connection is refused, and nobody else can take the port.
        handle = f"http://127.0.0.1:{taken.getsockname()[1]}{PATH}"
        clock = Clock()
        with pytest.raises(ExpertError, match=r"no answer.*refused") as caught:
            hub.resolve(handle, sleep=clock)
    assert clock.waits == [1.0, 2.0, 4.0, 8.0]
    assert handle in str(caught.value)
    assert "EXPERTS_HUB_ADDRESS" in str(caught.value)


def test_resolve_silent_server_times_out(server: HubServer, cache: Path) -> None:
    server.always_reply(PATH, Reply(stalls=True))
    with pytest.raises(ExpertError, match=r"no answer.*timed out"):
        hub.resolve(
            server.address + PATH,
            sleep=Clock(),
            retry=hub.RetryPolicy(attempts=1),
            timeout_seconds=0.2,
        )
    assert server.stalled.is_set()


def test_resolve_uncompressed_refusal_names_status(
    server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFHUB_MODEL_LOAD_FORMAT", "UNCOMPRESSED")
    with pytest.raises(ExpertError, match="HTTP status 404") as caught:
        hub.resolve(server.address + PATH, sleep=Clock())
    assert "tf-hub-format=uncompressed" in str(caught.value)


def test_resolve_unknown_load_format_is_refused(
    server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFHUB_MODEL_LOAD_FORMAT", "ZIPPED")
    with pytest.raises(ExpertError, match="TFHUB_MODEL_LOAD_FORMAT=ZIPPED; use COMPRESSED"):
        hub.resolve(server.address + PATH)
    assert server.requests == {}


def _empty(entry: Path) -> None:
    for child in entry.iterdir():
        shutil.rmtree(child) if child.is_dir() else child.unlink()


def _drop_graph(entry: Path) -> None:
    (entry / "saved_model.pb").unlink()


def _cut_graph(entry: Path) -> None:
    graph = entry / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[: graph.stat().st_size // 2])


def _drop_variables(entry: Path) -> None:
    shutil.rmtree(entry / "variables")


def _drop_data(entry: Path) -> None:
    next((entry / "variables").glob("variables.data-*")).unlink()


def _cut_data(entry: Path) -> None:
    data = next((entry / "variables").glob("variables.data-*"))
    data.write_bytes(data.read_bytes()[:-1])


def _spoil_index(entry: Path) -> None:
    (entry / "variables" / "variables.index").write_bytes(b"not an index" * 20)


def _drop_vocabulary(entry: Path) -> None:
    (entry / "assets" / "vocab.txt").unlink()


def _make_file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("a file where a folder should be")


@pytest.mark.parametrize(
    "damage",
    [
        _empty,
        _drop_graph,
        _cut_graph,
        _drop_variables,
        _drop_data,
        _cut_data,
        _spoil_index,
        _drop_vocabulary,
        _make_file,
    ],
)
def test_resolve_broken_cache_entry_is_fetched_again(
    server: HubServer, cache: Path, damage, caplog: pytest.LogCaptureFixture
) -> None:
    handle = server.address + PATH
    entry = Path(hub.resolve(handle))
    whole = savedmodel.fingerprint_model(str(entry))
    damage(entry)
    assert hub.resolve(handle) == str(entry)
    assert savedmodel.fingerprint_model(str(entry)) == whole
    assert server.requests == {PATH: 2}
    assert "is broken" in caplog.text
    assert hub.resolve(handle) == str(entry)
    assert server.requests == {PATH: 2}


def test_resolve_leftovers_of_a_dead_process_are_removed(server: HubServer, cache: Path) -> None:
    handle = server.address + PATH
    entry = Path(hub.entry_path(handle))
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1).stdout
    cache.mkdir()
    Path(f"{entry}.lock").write_text(f"{socket.gethostname()}.{int(dead)}.abc123")
    for task in ("abc123", "0ld"):
        Path(f"{entry}.{task}.tmp").mkdir()
    other = cache / ("f" * 40 + ".abc123.tmp")
    other.mkdir()
    started = time.monotonic()
    assert hub.resolve(handle) == str(entry)
    # tensorflow_hub alone would wait 10 minutes for that lock.
    assert time.monotonic() - started < 30
    assert list_leftovers(cache) == [other.name]


def test_remove_leftovers_lock_of_an_earlier_holder_goes_though_it_still_lives(
    cache: Path,
) -> None:
    # A killed process frees its lock some time before it is dead to everyone.
    cache.mkdir()
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with living:
        (cache / "entry.lock").write_text(f"{socket.gethostname()}.{living.pid}.abc123")
        (cache / "entry.abc123.tmp").mkdir()
        holders = frozenset({f"{socket.gethostname()}.{living.pid}"})
        hub._remove_leftovers(str(cache / "entry"), holders=holders)
        living.communicate(b"\n")
    assert list_leftovers(cache) == []


def test_remove_leftovers_lock_of_another_machine_goes_and_its_parts_stay(cache: Path) -> None:
    entry = cache / "entry"
    cache.mkdir()
    (cache / "entry.lock").write_text("elsewhere.example.org.77.abc123")
    (cache / "entry.abc123.tmp").mkdir()
    hub._remove_leftovers(str(entry), holders=frozenset())
    assert list_leftovers(cache) == ["entry.abc123.tmp"]
    hub._remove_leftovers(str(entry), holders=frozenset())
    assert list_leftovers(cache) == []


def test_remove_leftovers_lock_of_a_living_process_stays_unless_older(cache: Path) -> None:
    entry, lock = cache / "entry", cache / "entry.lock"
    cache.mkdir()
    living = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with living:
        assert living.stdout is not None
        living.stdout.readline()
        lock.write_text(f"{socket.gethostname()}.{living.pid}.abc123")
        (cache / "entry.abc123.tmp").mkdir()
        hub._remove_leftovers(str(entry), holders=frozenset())
        assert list_leftovers(cache) == ["entry.abc123.tmp", "entry.lock"]
        if sys.platform == "linux":
            # The number belonged to another process when the lock was written.
            os.utime(lock, (1_000_000_000, 1_000_000_000))
            hub._remove_leftovers(str(entry), holders=frozenset())
            assert list_leftovers(cache) == []
        living.communicate(b"\n")


def test_resolve_cache_folder_under_a_file_fails_with_remedy(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(ExpertError, match="set TFHUB_CACHE_DIR to a folder") as caught:
        hub.resolve(server.address + PATH)
    assert server.address + PATH in str(caught.value)


def test_resolve_full_disk_fails_with_remedy(
    server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf
    from tensorflow_hub import file_utils

    def extract(*args: object, **kwargs: object) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "/cache/x; No space left on device")

    monkeypatch.setattr(file_utils, "extract_file", extract)
    clock = Clock()
    with pytest.raises(ExpertError, match=r"no space left in the model cache .* MB free") as caught:
        hub.resolve(server.address + PATH, sleep=clock)
    assert "set TFHUB_CACHE_DIR" in str(caught.value)
    assert clock.waits == []
    assert list_leftovers(cache) == []


def test_fill_entry_full_disk_fails_and_leaves_nothing(cache: Path) -> None:
    def fill(target: str) -> None:
        os.mkdir(target)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ExpertError, match="cannot copy s3://bucket/model: no space left"):
        hub.fill_entry(hub.entry_path("x"), fill, what="s3://bucket/model")
    assert list_leftovers(cache) == []


def test_resolve_threads_of_one_process_download_once(server: HubServer, cache: Path) -> None:
    handle = server.address + PATH
    server.reply(PATH, Reply(stalls=True), Reply())
    found: list[str] = []
    waiting = threading.Event()

    def say(line: str) -> None:
        if line.startswith("Waiting"):
            waiting.set()

    def resolve() -> None:
        found.append(hub.resolve(handle, progress=say, sleep=Clock()))

    threads = [threading.Thread(target=resolve) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert server.stalled.wait(60)
    assert waiting.wait(60)
    assert server.requests == {PATH: 1}
    server.release.set()  # the first connection breaks off here, and its thread asks again
    for thread in threads:
        thread.join(60)
    assert found == [hub.entry_path(handle)] * 2
    assert server.requests == {PATH: 2}


def _resolve_all(handles: list[str], env: dict[str, str], barrier, results) -> None:
    os.environ.update(env)  # the fork server may be older than this test's settings
    barrier.wait(120)
    results.put([hub.resolve(handle) for handle in handles])


def test_resolve_eight_processes_download_each_handle_once(server: HubServer, cache: Path) -> None:
    handles = [server.address + info.handle.removeprefix(HUB_ADDRESS) for info in EXPERTS.values()]
    context = multiprocessing.get_context("forkserver")
    # TensorFlow is imported once, in the server that the eight are forked from.
    context.set_forkserver_preload(["tensorflow_hub", "transforms.hub", "tests.hub_server"])
    barrier, results = context.Barrier(8), context.Queue()
    processes = [
        context.Process(
            target=_resolve_all,
            args=(handles[start:] + handles[:start], dict(os.environ), barrier, results),
        )
        for start in range(8)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=200) for _ in processes]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 8
    assert server.requests == {handle.removeprefix(server.address): 1 for handle in handles}
    expected = sorted(hub.entry_path(handle) for handle in handles)
    assert [sorted(paths) for paths in found] == [expected] * 8
    assert all(savedmodel.find_fault(path) is None for path in expected)
    assert list_leftovers(cache) == []


def start_stalled_download(server: HubServer, handle: str) -> subprocess.Popen[bytes]:
    """Start a process that has fetched half of a model, and waits for the rest."""
    server.reply(PATH, Reply(stalls=True))
    downloader = subprocess.Popen(
        [sys.executable, "-c", f"from transforms import hub; hub.resolve({handle!r})"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    assert server.stalled.wait(120)
    return downloader


def test_resolve_after_a_killed_download_takes_seconds(server: HubServer, cache: Path) -> None:
    handle = server.address + PATH
    downloader = start_stalled_download(server, handle)
    downloader.send_signal(signal.SIGKILL)
    # Not waited for yet: a killed child whose parent is slow to notice is a zombie with a number.
    leftovers = list_leftovers(cache)
    started = time.monotonic()
    path = hub.resolve(handle)
    seconds = time.monotonic() - started
    downloader.wait(60)
    assert sorted(Path(name).suffix for name in leftovers) == [".lock", ".tmp"]
    assert savedmodel.find_fault(path) is None
    assert seconds < 20
    assert server.requests == {PATH: 2}
    assert list_leftovers(cache) == []


def test_resolve_waiting_for_a_download_that_is_killed_takes_over(
    server: HubServer, cache: Path
) -> None:
    # The waiter gets the lock while the killed process is dying, not yet dead.
    handle = server.address + PATH
    downloader = start_stalled_download(server, handle)
    waiting, found = threading.Event(), []

    def say(line: str) -> None:
        if line.startswith("Waiting"):
            waiting.set()

    thread = threading.Thread(
        target=lambda: found.append(hub.resolve(handle, progress=say)), daemon=True
    )
    thread.start()
    assert waiting.wait(60)
    downloader.send_signal(signal.SIGKILL)
    thread.join(20)
    downloader.wait(60)
    assert found == [hub.entry_path(handle)]
    assert savedmodel.find_fault(found[0]) is None
    assert list_leftovers(cache) == []


def test_pack_folder_and_archive_form_is_the_hubs(models: tuple[Path, Path]) -> None:
    with tarfile.open(fileobj=io.BytesIO(pack_folder(models[0]))) as archive:
        names = archive.getnames()
    assert "./saved_model.pb" in names


@given(
    st.floats(0.01, 10),
    st.floats(1, 4),
    st.floats(0.01, 100),
    st.integers(1, 30),
)
def test_retry_policy_waits_grow_up_to_the_longest(
    first: float, factor: float, longest: float, attempts: int
) -> None:
    policy = hub.RetryPolicy(attempts, first, factor, longest)
    waits = [policy.wait_seconds(attempt) for attempt in range(1, attempts + 1)]
    assert waits == sorted(waits)
    assert waits[0] == min(first, longest)
    assert max(waits) <= longest


def test_retry_policy_without_attempts_is_refused() -> None:
    with pytest.raises(ValueError, match="attempts=0"):
        hub.RetryPolicy(attempts=0)
