"""Proof by encoding again: the sample's vectors against those of its texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from transforms import spool
from transforms.errors import ConfigError, InputError
from transforms.read import ReadSettings, expand_inputs, plan_tasks, read_chunks
from transforms.records import (
    FileFault,
    FloatArray,
    RowFailure,
    RowFields,
    RowLimits,
    VectorBatch,
)
from transforms.verification import SampleRow, Verification
from transforms.verify_rows import keeps_text

# Largest difference that rounding may make, as a share of the vector's largest number, and in
# cosine. Other batches and workers came out within 1e-5.
TOLERANCE = 1e-4

EncodeTexts = Callable[[list[str], "list[str] | None"], tuple[VectorBatch, list[RowFailure]]]


@dataclass(frozen=True, slots=True)
class FoundTexts:
    """Texts of sampled rows, by their place in the sample, and why others have none."""

    texts: dict[int, tuple[str, str | None]]
    missing: str = ""


def find_texts(found: Verification) -> FoundTexts:
    """The texts of the sample: those kept in the output, else from the inputs of its run.

    The corpus is read until every sampled id was found. A text that is no longer the one encoded
    (by its sha256) is none.
    """
    manifest = found.manifest
    assert manifest is not None
    sample = found.sample
    if keeps_text(manifest):
        texts = {
            place: (row.text, row.pair) for place, row in enumerate(sample) if row.text is not None
        }
        return FoundTexts(texts, "" if len(texts) == len(sample) else "some rows have no text")
    places = {row.id: place for place, row in enumerate(sample)}
    try:
        read = _read_texts(manifest["config"], set(places))
    except (InputError, ConfigError, OSError) as error:
        return FoundTexts({}, f"the run's inputs cannot be read: {error}")
    texts = {}
    changed = 0
    for key, (text, pair) in read.items():
        pairs = None if pair is None else pa.array([pair], pa.string())
        digest = spool.hash_texts(pa.array([text], pa.string()), pairs)[0].hex()
        if digest == sample[places[key]].text_sha256:
            texts[places[key]] = (text, pair)
        else:
            changed += 1
    gone = len(places) - len(read)
    reasons = [f"{gone:,} of the rows are not in the run's inputs"] if gone else []
    reasons += [f"{changed:,} of the rows have another text there"] if changed else []
    return FoundTexts(texts, "; ".join(reasons))


def _read_texts(config: Mapping[str, Any], wanted: set[str]) -> dict[str, tuple[str, str | None]]:
    """Read the corpus of a run until the wanted ids are found: id → text and second text."""
    files = expand_inputs(config["input"], input_format=config["input_format"])
    fields = RowFields(
        text=config["text_field"],
        pair=config["pair_field"] or None,
        id=config["id_field"] or None,
    )
    settings = ReadSettings(csv_delimiter=config["csv_delimiter"].replace("\\t", "\t") or None)
    limits = RowLimits(max_row_bytes=config["max_row_bytes"])
    read: dict[str, tuple[str, str | None]] = {}
    value_set = pa.array(sorted(wanted), pa.string())
    for task in plan_tasks(files):
        for batch in read_chunks(task, fields=fields, limits=limits, settings=settings):
            if isinstance(batch, FileFault):
                continue  # a file that breaks off: its rows stay unfound, and that is said
            for place in np.flatnonzero(np.asarray(pc.is_in(batch.ids, value_set=value_set))):
                # The first row of an id is the one that was encoded.
                pair = None if batch.pairs is None else batch.pairs[int(place)].as_py()
                read.setdefault(
                    batch.ids[int(place)].as_py(), (batch.texts[int(place)].as_py(), pair)
                )
            if len(read) == len(wanted):
                return read
    return read


def check_sample(found: Verification, texts: FoundTexts, *, encode: EncodeTexts) -> None:
    """Encode the sample's texts again and hold the vectors against those stored."""
    if not texts.texts:
        keep = "; a run with --keep_text can be checked without them"
        found.skipped("sample", f"{texts.missing or 'there is no row to encode'}{keep}")
        return
    places = sorted(texts.texts)
    rows = [found.sample[place] for place in places]
    column = [texts.texts[place][0] for place in places]
    pairs = [texts.texts[place][1] or "" for place in places]
    with_pairs = any(texts.texts[place][1] is not None for place in places)
    batch, failures = encode(column, pairs if with_pairs else None)
    for failure in failures:
        row = rows[failure.row]
        found.fault(
            "sample",
            f"id {row.id!r}: its text cannot be encoded ({failure.reason}: {failure.message})",
            file=row.file,
            row=row.row,
        )
    stored = np.stack([row.vector for row in rows])[batch.rows]
    kept = [rows[place] for place in batch.rows.tolist()]
    difference, cosine = compare_vectors(stored, batch.vectors)
    bad = np.flatnonzero(~((difference <= TOLERANCE) & (cosine >= 1 - TOLERANCE)))
    for place in bad.tolist():
        other = _find_owner(stored[place], batch.vectors)
        whose = ""
        if other is not None:
            owner = kept[other]
            whose = f"; it is the vector of {owner.file} row {owner.row}, id {owner.id!r}"
        found.fault(
            "sample",
            f"id {kept[place].id!r}: the vector is not its text's (cosine {cosine[place]:.4f}, "
            f"difference {difference[place]:.2g}){whose}",
            file=kept[place].file,
            row=kept[place].row,
        )
    _compare_counts(found, kept, batch)
    detail = f"{len(kept):,} rows encoded again"
    if len(kept):
        detail += f": largest difference {difference.max():.1g}, least cosine {cosine.min():.6f}"
    if len(bad) > max(1, len(kept) // 2):
        detail += "; most differ, as if another expert or other settings had made the vectors"
    if texts.missing:
        detail += f"; not all could be checked: {texts.missing}"
    found.passed("sample", detail)


def compare_vectors(
    stored: FloatArray, fresh: FloatArray
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Largest difference of each row as a share of its largest number, and the cosine: [B] each."""
    one, other = stored.astype(np.float64), fresh.astype(np.float64)
    scale = np.abs(other).max(axis=1, initial=0.0)
    difference = np.abs(one - other).max(axis=1, initial=0.0) / np.where(scale > 0, scale, 1)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosine = (one * other).sum(axis=1) / np.where(norms > 0, norms, 1)
    return difference, cosine


def _find_owner(vector: FloatArray, fresh: FloatArray) -> int | None:
    """The row of `fresh` whose vector this is, or None."""
    difference, _ = compare_vectors(np.broadcast_to(vector, fresh.shape), fresh)
    nearest = int(difference.argmin())
    return nearest if difference[nearest] <= TOLERANCE else None


def _compare_counts(found: Verification, rows: Sequence[SampleRow], batch: VectorBatch) -> None:
    for row, n_tokens, truncated in zip(
        rows, batch.n_tokens.tolist(), batch.truncated.tolist(), strict=True
    ):
        if (row.n_tokens, row.truncated) != (n_tokens, truncated):
            found.fault(
                "sample",
                f"id {row.id!r}: n_tokens={row.n_tokens}, truncated={row.truncated}; its text "
                f"gives {n_tokens} and {truncated}",
                file=row.file,
                row=row.row,
            )
