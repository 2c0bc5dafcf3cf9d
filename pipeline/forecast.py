"""From what a sample and a calibration measured to what a run will come to; arithmetic alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from transforms.errors import ConfigError
from transforms.sample import estimate_total

if TYPE_CHECKING:
    from transforms.calibrate import CostModel, Shape
    from transforms.records import BoolArray, Int32Array

LIMITS = (64, 128, 256, 512)
# What Beam's in-process runner takes for a pass, however little there is to do: stated, from the
# reports of runs on the development machine (2 cores), where starting the command took
# START_SECONDS. That start is measured where plan runs, and the passes are taken to be as much
# slower or faster. Everything else is measured.
START_SECONDS = 2.3
PASS_SECONDS = {"index": 0.8, "encode": 0.75, "assemble": 0.1}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its standard error; 0 means counted, None not known."""

    value: float
    error: float | None = 0.0

    def describe(self) -> str:
        """`12,345 (counted)`, `12,345 ± 67`, or the number with the note that no error is known."""
        number = f"{self.value:,.0f}"
        if self.error is None:
            return f"about {number} (one place read: error not known)"
        return f"{number} ± {self.error:,.0f}" if self.error else f"{number} (counted)"


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of all rows that will be encoded, and shares of the sample that limits would cut."""

    total: Estimate
    mean: float
    longest: int
    cut_at: dict[int, float]


def count_tokens(
    lengths: Int32Array,
    cut: BoolArray,
    *,
    groups: Int32Array,
    max_tokens: int,
    position_limit: int,
    rows: float,
    sizes: Sequence[float] = (),
    whole: float = 0.0,
) -> TokenCounts:
    """Scale the sample's tokens up.

    Args:
      lengths: int32 [B], tokens at the expert's own limit; cut: bool [B], text was longer.
      groups: int32 [B], the place that each row was read at: neighbours are alike, so the error
        is judged between places and not between rows.
      max_tokens: the run's.
      position_limit: the expert's.
      rows: that will be encoded.
      sizes: bytes of each place, out of `whole`: tokens go by bytes far more evenly than by rows;
        without them the rows are what is scaled by.
    """
    kept = np.minimum(lengths, max_tokens)
    sums = np.bincount(groups, weights=kept, minlength=len(sizes))
    if sizes:
        total, error = estimate_total(sums.tolist(), sizes, total=whole)
    else:
        counts = np.bincount(groups)
        used = counts > 0
        total, error = estimate_total(sums[used].tolist(), counts[used].tolist(), total=rows)
    return TokenCounts(
        total=Estimate(total, error),
        mean=float(kept.mean()) if len(kept) else 0.0,
        longest=int(lengths.max(initial=0)),
        cut_at={
            limit: float(((lengths > limit) | (cut & (limit >= position_limit))).mean())
            if len(lengths)
            else 0.0
            for limit in LIMITS
            if limit <= position_limit
        },
    )


def size_chunk(*, rows: float, tasks: int, row_bytes: float, max_rows: int, max_bytes: int) -> int:
    """Rows of a typical chunk: tasks are cut into equal chunks for this purpose."""
    if rows <= 0:
        return 0
    in_task = rows / max(1, tasks)
    most = max(1.0, min(float(max_rows), max_bytes / max(1.0, row_bytes)))
    return max(1, round(in_task / math.ceil(in_task / most)))


def encode_seconds(
    shapes: Sequence[Shape], *, model: CostModel, tokens_in_shapes: int, tokens: float
) -> float:
    """The time of all batches, given those of some chunks with `tokens_in_shapes` real tokens."""
    if not tokens_in_shapes:
        return 0.0
    return sum(model.seconds(shape) for shape in shapes) / tokens_in_shapes * tokens


def pass_seconds(start_seconds: float) -> dict[str, float]:
    """The runner's own time for each pass, on a machine where the command's start took so long."""
    scale = min(5.0, max(0.3, start_seconds / START_SECONDS))
    return {name: seconds * scale for name, seconds in PASS_SECONDS.items()}


def flops_per_token(*, layers: int, width: int, length: int) -> float:
    """Arithmetic of a BERT encoder for a token of a row of so many; feed-forward 4 × width.

    Source: 24 H² for the four projections and the feed-forward layers, 4 L H for attention.
    """
    return float(layers * (24 * width * width + 4 * length * width))


def load_machines(tables: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Join machine tables: (name of the file, its content), later ones win.

    Raises: ConfigError for a table that is none.
    """
    joined: dict[str, Any] = {"prices": {}, "rates": {}, "machines": {}}
    for name, table in tables:
        if not isinstance(table, Mapping) or not set(table) <= set(joined):
            raise ConfigError(
                f"{name}: wanted a mapping with {', '.join(joined)}, as in configs/machines.yaml"
            )
        for part, found in table.items():
            if not isinstance(found, Mapping):
                raise ConfigError(f"{name}: {part}: wanted a mapping, found {found!r}")
            for key, value in found.items():
                old = joined[part].get(key)
                both = isinstance(value, Mapping) and isinstance(old, Mapping)
                joined[part][key] = {**old, **value} if both else value
    return joined


def forecast_machines(
    tables: Mapping[str, Any], *, shapes: Sequence[Shape], tokens: float, tokens_in_shapes: int,
    layers: int, width: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Hours and price of the encoding on each named machine, one worker.

    Raises: ConfigError for a table that lacks a figure.
    """
    base = flops_per_token(layers=12, width=768, length=128)
    work = sum(
        shape.padded_tokens * flops_per_token(layers=layers, width=width, length=shape.length)
        for shape in shapes
    )
    scale = tokens / tokens_in_shapes if tokens_in_shapes else 0.0
    base_tokens = work * scale / base
    found = []
    prices, rates = tables["prices"], tables["rates"]
    for name, machine in tables["machines"].items():
        try:
            rate = float(rates["tokens_per_second"][name])
            start = float(rates["worker_start_minutes"]) * 60
            hourly = machine["vcpus"] * float(prices["vcpu_hour"])
            hourly += machine["memory_gb"] * float(prices["memory_gb_hour"])
            if machine.get("gpu"):
                hourly += float(prices["gpu_hour"][machine["gpu"]])
            if rate <= 0:
                raise ValueError(f"{rate:g} tokens per second")
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"machine {name}: no usable figure ({type(error).__name__}: {error}); wanted "
                "vcpus, memory_gb, a rate and prices as in configs/machines.yaml"
            ) from error
        hours = (start + base_tokens / rate) / 3600
        found.append(
            {
                "machine": name,
                "tokens_per_second_stated": rate,
                "basis": machine.get("basis", "given by the user"),
                "price_per_hour": round(hourly, 4),
                "hours": round(hours, 4),
                "price": round(hours * hourly, 4),
            }
        )
    return found
