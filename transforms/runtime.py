"""What a worker notes of its own running: tokens over time, and its peak memory."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass

BUCKET_SECONDS = 0.25
MOST_BUCKETS = 240
_MOST_PROCESSES = 64


@dataclass(frozen=True, slots=True)
class Timeline:
    """Tokens by time, in at most `MOST_BUCKETS` steps of time however long the run.

    Bucket i covers `[i, i + 1) * bucket_seconds` of Unix time. Where the span gets too long, the
    buckets double in width; so two timelines add up to the same one in any order.
    """

    level: int = 0
    buckets: tuple[tuple[int, float], ...] = ()

    @property
    def bucket_seconds(self) -> float:
        """Width of a bucket."""
        return BUCKET_SECONDS * 2.0**self.level

    def __add__(self, other: Timeline) -> Timeline:
        if not other.buckets:
            return self
        if not self.buckets:
            return other
        level = max(self.level, other.level)
        pairs = [
            (bucket >> (level - one.level), tokens)
            for one in (self, other)
            for bucket, tokens in one.buckets
        ]
        return _fit(pairs, level=level)


def spread_tokens(start: float, stop: float, *, tokens: float) -> Timeline:
    """The timeline of tokens that were encoded evenly from `start` to `stop`, Unix times."""
    level = 0
    while (stop - start) / (BUCKET_SECONDS * 2**level) > MOST_BUCKETS - 2:
        level += 1
    width = BUCKET_SECONDS * 2.0**level
    first, last = int(start // width), int(max(start, stop) // width)
    if first == last:
        return Timeline(level, ((first, tokens),))
    rate = tokens / (stop - start)
    return Timeline(
        level,
        tuple(
            (bucket, rate * (min(stop, (bucket + 1) * width) - max(start, bucket * width)))
            for bucket in range(first, last + 1)
        ),
    )


def _fit(pairs: Iterable[tuple[int, float]], *, level: int) -> Timeline:
    sums: dict[int, float] = {}
    for bucket, tokens in pairs:
        sums[bucket] = sums.get(bucket, 0.0) + tokens
    while max(sums) - min(sums) >= MOST_BUCKETS:
        level += 1
        wider: dict[int, float] = {}
        for bucket, tokens in sums.items():
            wider[bucket >> 1] = wider.get(bucket >> 1, 0.0) + tokens
        sums = wider
    return Timeline(level, tuple(sorted(sums.items())))


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """The most memory that each process ever held, for the processes that held most.

    processes: (host:pid, bytes) pairs, most first.
    """

    processes: tuple[tuple[str, int], ...] = ()

    def __add__(self, other: PeakMemory) -> PeakMemory:
        if not other.processes:
            return self
        if not self.processes:
            return other
        peaks = dict(self.processes)
        for name, size_bytes in other.processes:
            peaks[name] = max(size_bytes, peaks.get(name, 0))
        most = sorted(peaks.items(), key=lambda item: (-item[1], item[0]))
        return PeakMemory(tuple(most[:_MOST_PROCESSES]))


def measure_memory() -> PeakMemory:
    """The peak of this process so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size_bytes = peak if sys.platform == "darwin" else peak * 1024
    return PeakMemory(((f"{socket.gethostname()}:{os.getpid()}", size_bytes),))
