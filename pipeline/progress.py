"""What a run shows while it runs: a live line on a terminal, else a line now and then.

The launcher's own thread looks at what the workers leave under `_work/` (`transforms.progress`), so
it works alike on every runner. It only displays: nothing that fails here can fail a run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transforms import storage
from transforms.progress import COUNTED_FILE, TOTALS_FILE, Facts, read_facts, read_mark

JOURNAL_FILE = "_work/commit.json"
PASSES = ("index", "encode", "assemble", "commit")

_LOG_SECONDS = 30.0
_LOCAL_POLL_SECONDS = 0.25
_REMOTE_POLL_SECONDS = 20.0
_LOCAL_RATE_SECONDS = 60.0
_REMOTE_RATE_SECONDS = 240.0
_BAR_CELLS, _LEAST_BAR_CELLS = 18, 6


class Console:
    """stderr with at most one live line, which any other line pushes down."""

    def __init__(self) -> None:
        # A signal's handler speaks in the thread that may just be speaking.
        self._lock = threading.RLock()
        self._is_live = False
        self._ended = False

    @property
    def is_terminal(self) -> bool:
        """Whether a line can be written over."""
        return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def say(self, line: str) -> None:
        """Write a line that stays."""
        with self._lock:
            self.wipe()
            print(line, file=sys.stderr, flush=True)

    def show(self, line: str) -> None:
        """Write the live line over the last one."""
        with self._lock:
            if not self._ended:
                self._is_live = True
                print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)

    def wipe(self) -> None:
        """Remove the live line."""
        with self._lock:
            if self._is_live:
                self._is_live = False
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Show no live line any more: the process is about to end."""
        with self._lock:
            self.wipe()
            self._ended = True


CONSOLE = Console()


def say(line: str) -> None:
    """Tell the user one thing, on stderr."""
    CONSOLE.say(line)


@dataclass(frozen=True, slots=True)
class Status:
    """How far a run is.

    totals, counted: what the gate and the count at the end of the encode pass wrote down, once
    they have; tokens_per_second: of late, or None while there is nothing to tell.
    """

    name: str
    facts: Facts = field(default=Facts())
    totals: dict[str, Any] | None = None
    counted: dict[str, Any] | None = None
    tokens_per_second: float | None = None

    @property
    def rows(self) -> int | None:
        """Rows that should get a vector."""
        return None if self.totals is None else int(self.totals["rows"])

    @property
    def rows_done(self) -> int:
        """Rows that this pass is done with."""
        facts = self.facts
        if self.name == "index":
            return facts.rows_read
        done = facts.rows_encoded + facts.rows_skipped
        if self.name != "encode":
            done = facts.rows_assembled
        return done if self.rows is None else min(done, self.rows)

    @property
    def rejects(self) -> int:
        """Rejects so far."""
        if self.counted is not None:
            return int(self.counted["rejects"])
        before = self.facts.rows_rejected if self.totals is None else int(self.totals["rejects"])
        return before + self.facts.rows_failed

    @property
    def padding(self) -> float | None:
        """Share of the encoded positions that are padding."""
        padded = self.facts.padded_tokens
        return 1 - self.facts.tokens_encoded / padded if padded else None

    @property
    def tokens_left(self) -> float | None:
        """Tokens still to be encoded; those of texts that were not tokenized yet are estimated."""
        facts = self.facts
        if self.rows is None or not facts.rows_tokenized:
            return None
        unknown = max(0, self.rows - facts.rows_tokenized - facts.rows_skipped)
        estimate = facts.tokens_known + unknown * facts.tokens_known / facts.rows_tokenized
        return max(0.0, estimate - facts.tokens_encoded)

    @property
    def share(self) -> float | None:
        """What share of this pass is done: by tokens while encoding, by rows otherwise."""
        if not self.rows:
            return None
        left = self.tokens_left
        if self.name != "encode" or left is None:
            return self.rows_done / self.rows if self.name != "index" else None
        facts = self.facts
        skipped = facts.rows_skipped * facts.tokens_known / facts.rows_tokenized
        done = facts.tokens_encoded + skipped
        return min(1.0, done / (done + left)) if done + left else 1.0

    @property
    def seconds_left(self) -> float | None:
        """Time until everything is encoded, at the rate of late."""
        left = self.tokens_left
        if self.name != "encode" or left is None or not self.tokens_per_second:
            return None
        return left / self.tokens_per_second


class Watcher:
    """Reads how far a run is; each look costs a small listing and a read a worker process."""

    def __init__(self, output: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._output = output
        self._clock = clock
        self._marks: dict[str, dict[str, Any]] = {}
        self._committing = False
        self._seen: deque[tuple[float, int]] = deque()
        is_local = storage.is_local(output)
        self._window = _LOCAL_RATE_SECONDS if is_local else _REMOTE_RATE_SECONDS

    def look(self) -> Status:
        """How far the run is now."""
        for name in (TOTALS_FILE, COUNTED_FILE):
            if name not in self._marks:
                mark = read_mark(self._output, name)
                if mark is None:
                    break
                self._marks[name] = mark
        else:
            journal = storage.join(self._output, JOURNAL_FILE)
            self._committing = self._committing or storage.exists(journal)
        facts = read_facts(self._output)
        return Status(
            name=PASSES[len(self._marks) + self._committing],
            facts=facts,
            totals=self._marks.get(TOTALS_FILE),
            counted=self._marks.get(COUNTED_FILE),
            tokens_per_second=self._measure(facts.tokens_encoded),
        )

    def _measure(self, tokens: int) -> float | None:
        now = self._clock()
        if not self._seen or tokens != self._seen[-1][1]:
            self._seen.append((now, tokens))
        while len(self._seen) > 2 and now - self._seen[1][0] > self._window:
            self._seen.popleft()
        # The first look is from before the expert was loaded, and says nothing of its speed.
        seen = [one for one in self._seen if one[1] > 0]
        if len(seen) < 2:
            return None
        return (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])


def format_left(seconds: float) -> str:
    """0:42, 12:05, 3 h 12 min."""
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def _rejects(count: int) -> str:
    return "1 reject" if count == 1 else f"{count:,} rejects"


def describe_status(status: Status) -> dict[str, str]:
    """The parts of a line of progress, by name, in the order they stand in."""
    parts = {}
    if status.share is not None:
        parts["share"] = f"{100 * status.share:.0f} %"
    if status.name == "index" or status.rows is None:
        parts["rows"] = f"{status.rows_done:,} rows read"
    else:
        parts["rows"] = f"{status.rows_done:,}/{status.rows:,} rows"
    if status.name == "encode":
        if status.tokens_per_second:
            parts["rate"] = f"{status.tokens_per_second:,.0f} tokens/s"
        if status.padding is not None:
            parts["padding"] = f"padding {100 * status.padding:.0f} %"
        if not status.facts.rows_tokenized and status.rows_done < (status.rows or 0):
            parts["rate"] = "loading the expert"
    parts["rejects"] = _rejects(status.rejects)
    if status.seconds_left is not None:
        parts["left"] = f"{format_left(status.seconds_left)} left"
    return parts


def format_live(status: Status, *, width: int) -> str:
    """The live line, shortened until it fits into `width` columns."""
    parts = describe_status(status)
    dropped = iter(("padding", "rejects", "rate", "rows"))

    def line(bar: str = "") -> str:
        return f"{status.name:<8} {bar}{' · '.join(parts.values())}"

    # The last column stays free: a terminal may wrap there.
    while len(line()) >= width and parts:
        parts.pop(next(dropped, next(iter(parts))), None)
    cells = min(_BAR_CELLS, width - 2 - len(line()))
    if status.share is None or cells < _LEAST_BAR_CELLS:
        return line()[: max(0, width - 1)]
    full = int(status.share * cells)
    return line(f"{'█' * full}{'░' * (cells - full)} ")


def format_log(status: Status) -> str:
    """The same as a line of a log."""
    return f"{status.name}: {', '.join(describe_status(status).values())}"


def format_change(status: Status, *, ended: str) -> str | None:
    """What is said when a pass has ended, or None."""
    if ended == "index" and status.totals is not None:
        totals = status.totals
        return (
            f"index: {totals['rows_read']:,} rows read, {_rejects(totals['rejects'])}; "
            f"{totals['rows']:,} to encode"
        )
    if ended == "encode" and status.counted is not None:
        counted = status.counted
        return f"encode: {counted['vectors']:,} vectors, {_rejects(counted['rejects'])} in all"
    if ended == "assemble":
        return "assemble: files are written; committing"
    return None


class Progress:
    """Shows how far a run is, from entering to leaving the context.

    Args:
      live: False where other lines come on the same terminal, as with `--verbose`.
    """

    def __init__(
        self,
        output: str,
        *,
        live: bool = True,
        console: Console = CONSOLE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watcher = Watcher(output, clock=clock)
        self._console = console
        self._live = live
        self._clock = clock
        self._poll_seconds = _REMOTE_POLL_SECONDS
        if storage.is_local(output):
            self._poll_seconds = _LOCAL_POLL_SECONDS
        self._pass = 0
        self._said = clock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        # A look at a slow store may be under way; the run does not wait for it.
        self._thread.join(timeout=2)
        self._console.wipe()

    def _run(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            with contextlib.suppress(Exception):  # it is only for show
                self.update()

    def update(self) -> None:
        """Look, and show what is new."""
        status = self._watcher.look()
        now = PASSES.index(status.name)
        for ended in PASSES[self._pass : now]:
            line = format_change(status, ended=ended)
            if line is not None:
                self._tell(line)
        self._pass = max(self._pass, now)
        if self._stop.is_set():
            return
        if self._live and self._console.is_terminal:
            width = shutil.get_terminal_size().columns
            with contextlib.suppress(OSError, ValueError):
                # stdout, which shutil asks, may be a pipe where stderr is the terminal.
                width = os.get_terminal_size(sys.stderr.fileno()).columns or width
            self._console.show(format_live(status, width=width))
        elif self._clock() - self._said >= _LOG_SECONDS:
            self._tell(format_log(status))

    def _tell(self, line: str) -> None:
        self._said = self._clock()
        self._console.say(line)
