"""What a run shows: a live line on a terminal, plain lines elsewhere, and no noise of libraries."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import launch
from pipeline.progress import (
    Console,
    Progress,
    Status,
    Watcher,
    describe_status,
    format_live,
    format_log,
)
from tests import commands
from tests.conftest import SavedExpert
from transforms import progress, storage
from transforms.progress import Facts, FactsFile, read_facts

ROOT = Path(__file__).parents[1]
TOTALS = {"rows_read": 1000, "rows": 900, "rejects": 100, "text_bytes": 5}


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# Facts on disk


def test_facts_file_is_written_at_intervals_and_holds_sums(tmp_path):
    clock, output = Clock(), str(tmp_path)
    file = FactsFile(output, clock=clock)
    file.add(Facts(rows_read=5))
    assert read_facts(output) == Facts(rows_read=5)
    file.add(Facts(rows_read=2, rows_encoded=1))
    assert read_facts(output) == Facts(rows_read=5)
    clock.now += 1
    file.add(Facts(tokens_encoded=7))
    other = FactsFile(output, clock=clock)
    other.add(Facts(rows_read=10))
    assert read_facts(output) == Facts(rows_read=17, rows_encoded=1, tokens_encoded=7)
    assert len(list((tmp_path / "_work/progress").iterdir())) == 2


def test_facts_file_many_threads_lose_no_count(tmp_path):
    clock = Clock()
    file = FactsFile(str(tmp_path), clock=clock)
    threads = [
        threading.Thread(target=lambda: [file.add(Facts(rows_read=1)) for _ in range(200)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    clock.now += 1
    file.add(Facts())
    assert read_facts(str(tmp_path)) == Facts(rows_read=800)


def test_facts_file_folder_gone_after_the_commit_is_not_made_again(tmp_path):
    clock = Clock()
    file = FactsFile(str(tmp_path), clock=clock)
    storage.delete_folder(str(tmp_path / "_work"))
    file.add(Facts(rows_read=1))
    assert list(tmp_path.iterdir()) == []


def test_read_facts_damaged_file_counts_as_none(tmp_path):
    FactsFile(str(tmp_path)).add(Facts(rows_read=3))
    (tmp_path / "_work/progress/broken.json").write_bytes(b'{"rows_re')
    assert read_facts(str(tmp_path)) == Facts(rows_read=3)


def test_clear_forgets_an_earlier_run_on_disk_and_in_the_process(tmp_path):
    output = str(tmp_path)
    progress.record(output, Facts(rows_read=3))
    progress.mark(output, progress.TOTALS_FILE, TOTALS)
    progress.clear(output)
    assert read_facts(output) == Facts()
    assert progress.read_mark(output, progress.TOTALS_FILE) is None
    progress.record(output, Facts(rows_read=1))
    assert read_facts(output) == Facts(rows_read=1)


# From facts to a status


def write_facts(output: Path, facts: Facts) -> None:
    folder = output / "_work" / "progress"
    folder.mkdir(parents=True, exist_ok=True)
    body = {name: getattr(facts, name) for name in Facts.__slots__}
    (folder / "worker.json").write_text(json.dumps(body))


def test_watcher_passes_follow_the_marks_and_rates_the_clock(tmp_path):
    clock, output = Clock(), str(tmp_path)
    watcher = Watcher(output, clock=clock)
    assert watcher.look() == Status("index")
    write_facts(tmp_path, Facts(rows_read=400))
    assert watcher.look().rows_done == 400
    progress.mark(output, progress.TOTALS_FILE, TOTALS)
    status = watcher.look()
    assert (status.name, status.rows, status.rejects, status.share) == ("encode", 900, 100, 0)
    clock.now += 60
    known = {"rows_read": 1000, "rows_skipped": 300, "rows_tokenized": 300, "tokens_known": 3000}
    write_facts(tmp_path, Facts(**known, rows_encoded=10, tokens_encoded=100, padded_tokens=125))
    assert watcher.look().tokens_per_second is None
    clock.now += 10
    write_facts(
        tmp_path,
        Facts(**known, rows_encoded=110, tokens_encoded=1100, padded_tokens=1375, rows_failed=2),
    )
    status = watcher.look()
    assert status.tokens_per_second == pytest.approx(100)
    assert status.rows_done == 410
    assert status.rejects == 102
    assert status.padding == pytest.approx(0.2)
    # 300 rows of 10 tokens are known and 300 more are to come: 6,000 tokens less 1,100.
    assert status.tokens_left == pytest.approx(4900)
    assert status.seconds_left == pytest.approx(49)
    assert status.share == pytest.approx((1100 + 3000) / 9000)
    progress.mark(output, progress.COUNTED_FILE, {"vectors": 895, "rejects": 105})
    assert (watcher.look().name, watcher.look().rejects) == ("assemble", 105)
    (tmp_path / "_work" / "commit.json").write_text("{}")
    assert watcher.look().name == "commit"


@given(
    st.builds(Facts, *[st.integers(0, 2000)] * 10),
    st.sampled_from(["index", "encode", "assemble", "commit"]),
    st.one_of(st.none(), st.floats(0.001, 1e9)),
    st.integers(1, 200),
)
def test_format_live_any_facts_fit_the_terminal(facts, name, rate, width):
    totals = None if name == "index" else TOTALS
    status = Status(name, facts, totals, tokens_per_second=rate)
    assert len(format_live(status, width=width)) < width
    assert status.share is None or 0 <= status.share <= 1
    assert "\n" not in format_log(status)


def make_status() -> Status:
    facts = Facts(
        rows_tokenized=900,
        tokens_known=9000,
        rows_encoded=450,
        tokens_encoded=4500,
        padded_tokens=5000,
    )
    return Status("encode", facts, TOTALS, tokens_per_second=300)


def test_format_live_wide_terminal_shows_everything_and_narrow_the_most_important():
    parts = "50 % · 450/900 rows · 300 tokens/s · padding 10 % · 100 rejects · 0:15 left"
    status = make_status()
    assert format_live(status, width=120) == f"encode   █████████░░░░░░░░░ {parts}"
    assert format_live(status, width=100) == f"encode   ███████░░░░░░░ {parts}"
    assert format_live(status, width=91) == f"encode   {parts}"
    without = parts.replace(" · padding 10 %", "")
    assert format_live(status, width=80) == f"encode   ████░░░░░ {without}"
    assert format_live(status, width=40) == "encode   ██████░░░░░░░ 50 % · 0:15 left"


def test_describe_status_before_the_first_token_says_that_the_expert_loads():
    parts = describe_status(Status("encode", Facts(rows_read=1000), TOTALS))
    assert parts["rate"] == "loading the expert"
    resumed = Status("encode", Facts(rows_skipped=900), TOTALS)
    assert "rate" not in describe_status(resumed)
    assert resumed.share == 1


# What is shown


class FakeConsole(Console):
    """Keeps what is said; a terminal or none."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self.said: list[str] = []
        self.shown: list[str] = []
        self._terminal = is_terminal

    @property
    def is_terminal(self) -> bool:
        return self._terminal

    def say(self, line: str) -> None:
        self.said.append(line)

    def show(self, line: str) -> None:
        self.shown.append(line)


def test_progress_without_a_terminal_says_a_line_each_half_minute_and_at_each_change(tmp_path):
    clock, console = Clock(), FakeConsole(is_terminal=False)
    shown = Progress(str(tmp_path), console=console, clock=clock)
    write_facts(tmp_path, Facts(rows_read=40))
    shown.update()
    assert console.said == []
    clock.now += 29
    shown.update()
    assert console.said == []
    clock.now += 1
    shown.update()
    assert console.said == ["index: 40 rows read, 0 rejects"]
    progress.mark(str(tmp_path), progress.TOTALS_FILE, TOTALS)
    shown.update()
    shown.update()
    assert console.said[1:] == ["index: 1,000 rows read, 100 rejects; 900 to encode"]
    progress.mark(str(tmp_path), progress.COUNTED_FILE, {"vectors": 899, "rejects": 101})
    (tmp_path / "_work" / "commit.json").write_text("{}")
    clock.now += 30
    shown.update()
    assert console.said[2:] == [
        "encode: 899 vectors, 101 rejects in all",
        "assemble: files are written; committing",
    ]
    assert console.shown == []


def test_progress_of_a_verbose_run_shows_no_live_line(tmp_path):
    for live, shown in ((True, 1), (False, 0)):
        console = FakeConsole(is_terminal=True)
        Progress(str(tmp_path), console=console, live=live, clock=Clock()).update()
        assert len(console.shown) == shown


def test_progress_that_cannot_look_leaves_the_run_alone(tmp_path, monkeypatch):
    looked = threading.Event()

    def look(self: Watcher) -> Status:
        looked.set()
        raise RuntimeError("the store is away")

    monkeypatch.setattr(Watcher, "look", look)
    with Progress(str(tmp_path), console=FakeConsole(is_terminal=True)):
        assert looked.wait(10)


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_console_line_that_stays_pushes_the_live_line_down(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    console = Console()
    console.show("half")
    console.say("whole")
    console.show("more")
    console.end()
    console.show("late")
    assert stream.getvalue() == "\rhalf\x1b[K\r\x1b[Kwhole\n\rmore\x1b[K\r\x1b[K"


def test_hide_secrets_keys_and_passwords_do_not_reach_the_report():
    given_arguments = [
        "--input=s3://bucket/x",
        "--s3_secret_access_key=abc",
        "--s3_session_token",
        "def",
        "--max_tokens=128",
        "--hub_address=https://me:word@hub.example/x",
    ]
    assert launch.hide_secrets(given_arguments) == [
        "--input=s3://bucket/x",
        "--s3_secret_access_key=***",
        "--s3_session_token",
        "***",
        "--max_tokens=128",
        "--hub_address=https://me:***@hub.example/x",
    ]
    assert launch.format_command(["--a=b c"]) == "python -m pipeline.run '--a=b c'"


# Whole runs, as processes of their own: a fork of one that has TensorFlow would be quiet, or loud,
# for other reasons than the command.


def write_corpus(folder: Path, rows: int) -> None:
    lines = [json.dumps({"id": f"r{n}", "text": "word " * (1 + n % 90)}) for n in range(rows)]
    (folder / "rows.jsonl").write_text("\n".join([*lines, '{"id": "bad", "text": ""}']))


def start_command(expert: SavedExpert, *flags: str, folder: Path, **kwargs: Any) -> Any:
    command = [
        sys.executable,
        "-m",
        "pipeline.run",
        "--input=rows.jsonl",
        "--id_field=id",
        "--output=out",
        f"--expert={expert.encoder}",
        f"--preprocessor={expert.preprocessor}",
        *flags,
    ]
    plain = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    env = {**plain, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    return subprocess.Popen(command, cwd=folder, env=env, **kwargs)


def read_all(descriptor: int) -> str:
    """All that comes from a descriptor until its other end is closed."""
    received = b""
    # A pseudo-terminal whose other end is closed is an error to read, not an end of file.
    with contextlib.suppress(OSError):
        while data := os.read(descriptor, 65536):
            received += data
    return received.decode()


FIRST_LINES = [
    r"1 file\(s\), .* tensorflow float32",
    r"index: 3,001 rows read, 1 reject; 3,000 to encode",
    r"encode: 3,000 vectors, 1 reject in all",
    r"assemble: files are written; committing",
]
LAST_LINES = [
    r"out: committed 3,000 vectors in 1 file\(s\) from 3,001 rows, in \d+\.\d s",
    r"1 reject \(blank_text 1\): out/rejects/",
    r"[\d,]+ tokens encoded at [\d,]+ tokens/s, \d+\.\d% padding",
    r"report: out/report\.html",
    r"next: python -m pipeline\.verify out",
    r'      python -m pipeline\.search out "what to look for"',
]


def assert_only(lines: list[str]) -> None:
    """The lines that a run says, all of them and no other; short passes may pass unseen."""
    assert re.fullmatch(FIRST_LINES[0], lines[0]), lines
    assert re.fullmatch(FIRST_LINES[1], lines[1]), lines
    last = len(lines) - len(LAST_LINES)
    for line in lines[2:last]:
        assert any(re.fullmatch(pattern, line) for pattern in FIRST_LINES[2:]), line
    for line, pattern in zip(lines[last:], LAST_LINES, strict=True):
        assert re.fullmatch(pattern, line), lines


@pytest.mark.integration
def test_run_under_a_terminal_shows_a_live_line_and_no_noise(tmp_path, tiny_expert):
    write_corpus(tmp_path, 3000)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = start_command(tiny_expert, folder=tmp_path, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    text = read_all(master)
    os.close(master)
    assert process.wait(60) == 0, text
    lines = text.replace("\r\n", "\n").split("\n")
    assert_only([line.rsplit("\r\x1b[K", 1)[-1] for line in lines if line])
    live = re.findall(r"\r((?:index|encode|assemble|commit)\s[^\r\n\x1b]+)\x1b\[K", text)
    assert any(re.match(r"encode .*\d % · [\d,]+/3,000 rows · ", one) for one in live), text
    assert all(len(one) < 100 for one in live)
    # Nothing else was written over: what remains without the live lines are the lines above.
    assert text.count("\x1b") == len(live) + len(re.findall(r"\r\x1b\[K", text))


def run_under_a_pipe(expert: SavedExpert, *flags: str, folder: Path) -> list[str]:
    process = start_command(
        expert, *flags, folder=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    text = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, text
    assert not set(text) & {"\r", "\x1b"}
    return text.splitlines()


@pytest.mark.integration
def test_run_of_two_processes_under_a_pipe_says_plain_lines_and_no_noise(tmp_path, tiny_expert):
    write_corpus(tmp_path, 3000)
    flags = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    assert_only(run_under_a_pipe(tiny_expert, *flags, folder=tmp_path))
    processes = commands.read_report(tmp_path / "out")["memory"]["processes"]
    assert {one["process"].rpartition(":")[0] for one in processes} == {socket.gethostname()}


@pytest.mark.integration
def test_run_under_a_pipe_says_plain_lines_and_its_report_tells_what_it_was(tmp_path, tiny_expert):
    write_corpus(tmp_path, 3000)
    lines = run_under_a_pipe(
        tiny_expert, "--keep_text", "--max_tokens=64", "--rows_per_file=1000", folder=tmp_path
    )
    cut = lines.pop(-len(LAST_LINES))
    assert cut == "924 texts were cut at the token limit", lines
    assert_only([line.replace("3 file(s)", "1 file(s)") for line in lines])
    report = commands.read_report(tmp_path / "out")
    rows = list(commands.read_rows(tmp_path / "out").values())
    assert [one["name"] for one in report["time"]["passes"]] == [
        "prepare",
        "index",
        "encode",
        "assemble",
    ]
    passes = sum(one["seconds"] for one in report["time"]["passes"])
    assert passes == pytest.approx(report["time"]["wall_seconds"], abs=0.01)
    histogram = report["tokens"]["histogram"]
    assert sum(histogram["rows"]) == len(rows)
    assert histogram["rows"][-1] == sum(row["n_tokens"] == 64 for row in rows)
    assert sum(report["throughput"]["tokens"]) == pytest.approx(
        report["tokens"]["encoded"], abs=len(report["throughput"]["tokens"])
    )
    assert report["memory"]["peak_bytes"] > 100 << 20
    points = report["vectors"]["map"]
    assert points["id"] == [row["id"] for row in rows[::2]]
    assert points["text"][1] == rows[2]["text"]
    assert report["vectors"]["near_duplicates"]["examples"][0]["same_text"] is True
    assert report["reject_examples"] == {
        "blank_text": [
            {
                "id": "bad",
                "file": str(tmp_path / "rows.jsonl"),
                "position": report["reject_examples"]["blank_text"][0]["position"],
                "line": 3001,
                "message": report["reject_examples"]["blank_text"][0]["message"],
            }
        ]
    }
    assert report["run"]["command"].startswith("python -m pipeline.run --input=rows.jsonl ")
    assert report["versions"]["python"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "3,000 vectors" in page
    made = commands.run(["out", "--to=again.html"], folder=tmp_path, module="pipeline.report")
    assert made.code == 0, made.err
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page
