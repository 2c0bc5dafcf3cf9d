"""Proof of a committed output: every check on its own, every fault with its file and row.

`check_output` reads every byte once for the checksums and once for the rows, and takes a sample;
`verify_sample` then holds the sample's vectors against those of its texts. Row numbers count from
0 within their file.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from transforms import scan, storage
from transforms.commit import OutputState, inspect_output
from transforms.committed import CommittedFile, list_committed
from transforms.errors import ConfigError, InputError
from transforms.manifest import MANIFEST_FILE, MANIFEST_VERSION, SUCCESS_FILE, describe_file
from transforms.unique import IdPlaces
from transforms.verification import FAULTS_KEPT, Verification
from transforms.verify_rows import FileCheck, column_names
from transforms.writers import WRITERS

# Written by a commit, but not named in the manifest.
_REPORTS = {"report.json", "report.html"}
_REJECT_KEYS = ("id", "origin", "stage", "reason", "message", "raw")


def check_output(
    output: str, *, sample_rows: int, progress: Callable[[str], None] | None = None
) -> Verification:
    """Make every check but the sample's, and take the sample.

    The sample is drawn by the manifest's sha256, so it is another for each output and the same
    whenever an output is verified.

    Raises: ConfigError if `output` is no committed output.
    """
    found = Verification(output)
    digest = _check_manifest(found)
    manifest = found.manifest
    if manifest is None:
        return found
    _check_totals(found, manifest)
    present = _check_files(found, manifest)
    every = [*manifest["files"], *manifest["rejects"]["files"]]
    for number, entry in enumerate(every, 1):
        if entry["name"] in present:
            _check_checksum(found, entry)
        if progress is not None:
            progress(f"checksums: {number:,} of {len(every):,} file(s)")
    found.passed("checksums", f"{len(every):,} file(s)")
    _check_fingerprint(found, manifest)
    try:
        scan.embedding_column(manifest)
    except InputError as error:
        found.fault("schema", str(error), file=MANIFEST_FILE)
        return found
    with IdPlaces() as ids:
        _check_rows(
            found,
            manifest,
            present=present,
            ids=ids,
            picks=_pick_sample(manifest, sample_rows=sample_rows, seed=digest),
            progress=progress,
        )
    _check_rejects(found, manifest, present=present)
    return found


def _check_manifest(found: Verification) -> str:
    """Read the manifest; returns the sha256 of its bytes."""
    output = found.output
    success_path = storage.join(output, SUCCESS_FILE)
    if not storage.exists(success_path):
        state = inspect_output(output)
        if state in (OutputState.INTERRUPTED, OutputState.COMMITTING):
            hint = "a run in it was interrupted or is at work; let it finish, or run it again"
        else:
            hint = "give the folder that was --output of a finished run"
        raise ConfigError(f"{output} is no committed output (it has no {SUCCESS_FILE}); {hint}")
    try:
        data = storage.get_bytes(storage.join(output, MANIFEST_FILE))
    except OSError as error:
        found.fault("manifest", f"cannot be read: {error}", file=MANIFEST_FILE)
        return ""
    digest = hashlib.sha256(data).hexdigest()
    success = _load_object(storage.get_bytes(success_path))
    if success is None:
        found.fault("manifest", "holds no JSON object", file=SUCCESS_FILE)
    elif success.get("manifest_sha256") != digest:
        found.fault(
            "manifest",
            f"has sha256 {digest}, but {SUCCESS_FILE} names {success.get('manifest_sha256')}; one "
            "of the two was changed after the commit",
            file=MANIFEST_FILE,
        )
    manifest = _load_object(data)
    if manifest is None:
        found.fault("manifest", "holds no JSON object", file=MANIFEST_FILE)
        return digest
    version = manifest.get("manifest_version")
    if version != MANIFEST_VERSION and not found.checks["manifest"].fault_count:
        raise ConfigError(
            f"{storage.join(output, MANIFEST_FILE)} has manifest_version {version!r}; this program "
            f"reads version {MANIFEST_VERSION}. Use the version of the program that wrote it"
        )
    if problem := _find_shape_fault(manifest):
        found.fault("manifest", problem, file=MANIFEST_FILE)
        return digest
    found.manifest = manifest
    found.passed("manifest", f"sha256 {digest[:12]}…, written {manifest['created']}")
    return digest


def _load_object(data: bytes) -> dict[str, Any] | None:
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None


def _find_shape_fault(manifest: Mapping[str, Any]) -> str | None:
    """What of a manifest is not as this program writes it, or None."""
    try:
        for entry in (*manifest["files"], *manifest["rejects"]["files"]):
            describe_file(
                entry["name"],
                rows=entry["rows"],
                size_bytes=entry["bytes"],
                sha256=entry["sha256"],
            )
        for column in manifest["columns"]:
            _ = column["name"], column["type"], column["nullable"]
        totals = manifest["totals"]
        _ = totals["rows_read"] + totals["rows"] + sum(totals["rejects"].values())
        for part, keys in {
            "expert": ("name", "handle", "preprocessor", "width"),
            "fingerprint": ("digest", "parts"),
        }.items():
            _ = [manifest[part][key] for key in keys]
        _ = manifest["created"], dict(manifest["config"]), dict(manifest["fingerprint"]["parts"])
        if manifest["format"] not in WRITERS:
            return f"names the format {manifest['format']!r}; wanted one of {', '.join(WRITERS)}"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"is not as this program writes it: {type(error).__name__}: {error}"
    return None


def _check_totals(found: Verification, manifest: Mapping[str, Any]) -> None:
    totals = manifest["totals"]
    rows, read = totals["rows"], totals["rows_read"]
    rejects = sum(totals["rejects"].values())
    in_files = sum(entry["rows"] for entry in manifest["files"])
    in_rejects = sum(entry["rows"] for entry in manifest["rejects"]["files"])
    if read != rows + rejects:
        found.fault(
            "totals",
            f"rows_read is {read:,}, but rows are {rows:,} and rejects {rejects:,}",
            file=MANIFEST_FILE,
        )
    if rows != in_files:
        found.fault(
            "totals",
            f"rows is {rows:,}, but the files' rows add up to {in_files:,}",
            file=MANIFEST_FILE,
        )
    if rejects != in_rejects:
        found.fault(
            "totals",
            f"rejects by reason are {rejects:,}, but the rejects files' rows {in_rejects:,}",
            file=MANIFEST_FILE,
        )
    found.passed("totals", f"{read:,} rows read = {rows:,} vectors + {rejects:,} rejects")


def _check_files(found: Verification, manifest: Mapping[str, Any]) -> set[str]:
    """Compare the folder with the manifest; returns the manifest's files that are there."""
    there = storage.list_files(found.output)
    wanted = {
        entry["name"]: entry["bytes"]
        for entry in (*manifest["files"], *manifest["rejects"]["files"])
    }
    for name, size_bytes in wanted.items():
        if name not in there:
            found.fault("files", "is missing", file=name)
        elif there[name] != size_bytes:
            found.fault(
                "files", f"has {there[name]:,} bytes; the manifest says {size_bytes:,}", file=name
            )
    hidden: Counter[str] = Counter()
    for name in sorted(there.keys() - wanted.keys() - {MANIFEST_FILE, SUCCESS_FILE} - _REPORTS):
        parts = name.split("/")
        if any(part.startswith(("_", ".")) for part in parts):
            hidden[parts[0] + ("/" if len(parts) > 1 else "")] += 1
        else:
            found.fault(
                "files",
                "is not in the manifest, but readers of the folder may take it in; remove it",
                file=name,
            )
    for top, count in sorted(hidden.items()):
        found.notes.append(
            f"{top} ({count:,} file(s)) is left over and harmless: readers pass over names that "
            "begin with _ or .; it may be removed once no run is at work here"
        )
    if "report.json" not in there:
        found.notes.append("report.json is missing; the vectors do not depend on it")
    found.passed("files", f"{len(wanted):,} file(s), {sum(wanted.values()):,} bytes")
    return wanted.keys() & there.keys()


def _check_checksum(found: Verification, entry: Mapping[str, Any]) -> None:
    try:
        digest = storage.digest_file(storage.join(found.output, entry["name"])).sha256
    except OSError as error:
        found.fault("checksums", f"cannot be read: {error}", file=entry["name"])
        return
    if digest != entry["sha256"]:
        found.fault(
            "checksums",
            f"has sha256 {digest}; the manifest says {entry['sha256']}",
            file=entry["name"],
        )


def _check_fingerprint(found: Verification, manifest: Mapping[str, Any]) -> None:
    """Check the manifest's own digest; the files' footers are looked at with their rows."""
    parts, digest = manifest["fingerprint"]["parts"], manifest["fingerprint"]["digest"]
    made = hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()
    if made != digest:
        found.fault(
            "fingerprint",
            f"the fingerprint's digest is {digest}, but its parts make {made}",
            file=MANIFEST_FILE,
        )


def _pick_sample(
    manifest: Mapping[str, Any], *, sample_rows: int, seed: str
) -> list[npt.NDArray[np.int64]]:
    """The rows of each file that are encoded again, ascending."""
    rows = [entry["rows"] for entry in manifest["files"]]
    ends = np.cumsum([0, *rows])
    total = int(ends[-1])
    generator = np.random.default_rng(int(seed[:16] or "0", 16))
    picked = np.sort(generator.choice(total, min(sample_rows, total), replace=False))
    return [
        picked[(picked >= start) & (picked < stop)] - start
        for start, stop in itertools.pairwise(ends)
    ]


def _check_rows(
    found: Verification,
    manifest: Mapping[str, Any],
    *,
    present: set[str],
    ids: IdPlaces,
    picks: Sequence[npt.NDArray[np.int64]],
    progress: Callable[[str], None] | None,
) -> None:
    """Read every row of every file once."""
    files = list_committed(found.output, dict(manifest))
    rows = 0
    for file, entry, picked in zip(files, manifest["files"], picks, strict=True):
        if entry["name"] not in present:
            continue  # told by the check of the files
        rows += FileCheck(found, manifest, file=file, name=entry["name"]).run(ids, picked)
        if progress is not None:
            progress(f"rows: {rows:,} of {manifest['totals']['rows']:,}")
    for at, first in ids.duplicates():
        told = len(found.checks["ids"].faults) >= FAULTS_KEPT
        message = "" if told else _describe_repeat(files, manifest, at=at, first=first)
        found.fault("ids", message, file=manifest["files"][at[0]]["name"], row=at[1])
    normalized = bool(manifest["fingerprint"]["parts"].get("normalize"))
    name, width = scan.embedding_column(manifest)
    kept = "text" in column_names(manifest)
    found.passed("schema", f"{len(column_names(manifest))} columns, {name} {width} wide")
    footers = "and in every footer" if manifest["format"] == "parquet" else "(files have no footer)"
    found.passed(
        "fingerprint", f"{manifest['fingerprint']['digest'][:12]}… in the manifest {footers}"
    )
    found.passed("rows", f"{rows:,} rows in {len(files):,} file(s)")
    found.passed("ids", f"{rows:,} rows")
    found.passed("vectors", f"{rows:,} vectors{', of length 1' if normalized else ''}")
    found.passed("texts", f"{rows:,} rows{', against the texts kept' if kept else ''}")


def _describe_repeat(
    files: Sequence[CommittedFile],
    manifest: Mapping[str, Any],
    *,
    at: tuple[int, int],
    first: tuple[int, int],
) -> str:
    file, row = at
    embedding, _ = scan.embedding_column(manifest)
    there = scan.read_rows(files[file], [row], columns=["id"], embedding=embedding)
    first_name = manifest["files"][first[0]]["name"]
    return f"has the id {there[row]['id']!r} of {first_name} row {first[1]}"


def _check_rejects(found: Verification, manifest: Mapping[str, Any], *, present: set[str]) -> None:
    reasons: Counter[str] = Counter()
    rows = 0
    entries = manifest["rejects"]["files"]
    for entry in entries:
        if entry["name"] not in present:
            continue
        here = _read_rejects(found, entry["name"], reasons)
        rows += here
        if here != entry["rows"]:
            found.fault(
                "rejects",
                f"has {here:,} rows; the manifest says {entry['rows']:,}",
                file=entry["name"],
            )
    wanted = manifest["totals"]["rejects"]
    for reason in sorted({*wanted, *reasons}):
        if reasons[reason] != wanted.get(reason, 0):
            found.fault(
                "rejects",
                f"{reasons[reason]:,} rejects with the reason {reason}; the manifest says "
                f"{wanted.get(reason, 0):,}",
                file=MANIFEST_FILE,
            )
    found.passed("rejects", f"{rows:,} rejects in {len(entries):,} file(s)")


def _read_rejects(found: Verification, name: str, reasons: Counter[str]) -> int:
    row = 0
    try:
        with storage.open_read(storage.join(found.output, name)) as file:
            for row, line in enumerate(file, 1):
                reject = _load_object(line)
                if reject is None:
                    found.fault("rejects", "is no JSON object", file=name, row=row - 1)
                    continue
                if lacking := [key for key in _REJECT_KEYS if key not in reject]:
                    found.fault("rejects", f"lacks {', '.join(lacking)}", file=name, row=row - 1)
                reasons[str(reject.get("reason"))] += 1
    except OSError as error:
        found.fault("rejects", f"cannot be read: {error}", file=name)
    return row
