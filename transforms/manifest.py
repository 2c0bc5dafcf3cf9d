"""The manifest: what a committed output holds, and what made it."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import platform
import re
from typing import TYPE_CHECKING, Any

import orjson

from transforms import storage
from transforms.errors import ConservationError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pyarrow as pa

MANIFEST_VERSION = 1
MANIFEST_FILE = "manifest.json"
SUCCESS_FILE = "_SUCCESS"

# Key in the manifest → distributions that may bring it, the usual one first.
_PACKAGES = {
    "beam": ("apache-beam",),
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-macos", "tf-nightly"),
    "tensorflow_text": ("tensorflow-text", "tensorflow-text-nightly"),
    "tensorflow_hub": ("tensorflow-hub",),
    "pyarrow": ("pyarrow",),
    "numpy": ("numpy",),
}
_SHA256 = re.compile(r"[0-9a-f]{64}")


def describe_file(name: str, *, rows: int, size_bytes: int, sha256: str) -> dict[str, Any]:
    """Make a file's entry.

    Args:
      name: the path relative to the output, with `/`.
    Raises: ValueError if it is no such path, a count is negative, or sha256 is not 64 hex digits.
    """
    if not name or name.startswith("/") or "://" in name or ".." in name.split("/"):
        raise ValueError(f"file {name!r} of a manifest is not a path inside the output")
    if rows < 0 or size_bytes < 0:
        raise ValueError(f"file {name!r} has {rows} rows and {size_bytes} bytes")
    if not _SHA256.fullmatch(sha256):
        raise ValueError(f"file {name!r} has sha256 {sha256!r}; wanted 64 hex digits")
    return {"name": name, "rows": rows, "bytes": size_bytes, "sha256": sha256}


def collect_versions(*, product: str) -> dict[str, str | None]:
    """Look up what is installed, without importing it; None for what is not."""
    versions: dict[str, str | None] = {"product": product}
    versions |= {key: _find_version(names) for key, names in _PACKAGES.items()}
    versions["python"] = platform.python_version()
    return versions


def build_manifest(
    files: Iterable[Mapping[str, Any]],
    *,
    rejects_files: Iterable[Mapping[str, Any]],
    rows_read: int,
    rejects: Mapping[str, int],
    expert: Mapping[str, Any],
    fingerprint: str,
    fingerprint_parts: Mapping[str, Any],
    config: Mapping[str, Any],
    output_format: str,
    columns: pa.Schema,
    versions: Mapping[str, str | None],
    created: datetime.datetime,
    reused: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Put a manifest together; its keys and files always stand in the same order.

    Args:
      files, rejects_files: entries by `describe_file`.
      rejects: reason → rows.
      expert: name, handle, width, and what else tells experts apart.
      fingerprint, fingerprint_parts: the digest of all that determines a vector, and what it
        was made of.
      config: every setting, defaults as well.
      columns: the schema of the output files.
      created: the moment of the commit, with its time zone.
      reused: the run that vectors were taken over from.
    Returns: what JSON can carry, ready to be written.
    Raises: ConservationError if the counts do not add up; ValueError if a file stands twice, the
      expert lacks a name, handle or width, or `created` has no time zone.
    """
    if lacking := {"name", "handle", "width"} - expert.keys():
        raise ValueError(f"the expert of a manifest lacks {sorted(lacking)}")
    if created.tzinfo is None:
        raise ValueError(f"created={created.isoformat()} has no time zone")
    entries = _sort_files(files)
    rejects_entries = _sort_files(rejects_files)
    rows = sum(entry["rows"] for entry in entries)
    _check_counts(rows_read, rows=rows, rejects=rejects, rejects_entries=rejects_entries)
    return {
        "manifest_version": MANIFEST_VERSION,
        "created": created.astimezone(datetime.timezone.utc).isoformat(timespec="seconds"),
        "format": output_format,
        "columns": [
            {"name": field.name, "type": str(field.type), "nullable": field.nullable}
            for field in columns
        ],
        "files": entries,
        "rejects": {"files": rejects_entries},
        "totals": {"rows_read": rows_read, "rows": rows, "rejects": dict(sorted(rejects.items()))},
        "expert": dict(expert),
        "fingerprint": {"digest": fingerprint, "parts": dict(fingerprint_parts)},
        "config": dict(config),
        "versions": dict(versions),
        "reused": None if reused is None else dict(reused),
    }


def read_manifest(folder: str) -> dict[str, Any]:
    """Read the manifest of a committed output.

    Raises: InputError if the output is not committed, or the manifest is not the one that was
      committed, or one that this version does not know.
    """
    success = _read_json(folder, SUCCESS_FILE)
    data = _read_bytes(folder, MANIFEST_FILE)
    found, wanted = hashlib.sha256(data).hexdigest(), success.get("manifest_sha256")
    if found != wanted:
        raise InputError(
            f"{storage.join(folder, MANIFEST_FILE)} has sha256 {found}, but {SUCCESS_FILE} says "
            f"{wanted}; it was changed after the commit. Restore it, or make the output again"
        )
    manifest = _parse_object(storage.join(folder, MANIFEST_FILE), data)
    version = manifest.get("manifest_version")
    if version != MANIFEST_VERSION:
        raise InputError(
            f"{storage.join(folder, MANIFEST_FILE)} has manifest_version {version!r}; this program "
            f"reads version {MANIFEST_VERSION}. Use the program's version that wrote it, or a "
            "later one"
        )
    return manifest


def _find_version(names: Iterable[str]) -> str | None:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # noqa: PERF203 - a few names, once a run
            continue
    return None


def _sort_files(files: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    entries = sorted((dict(entry) for entry in files), key=lambda entry: str(entry["name"]))
    names = [entry["name"] for entry in entries]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"file {twice!r} stands twice in the manifest")
    return entries


def _check_counts(
    rows_read: int,
    *,
    rows: int,
    rejects: Mapping[str, int],
    rejects_entries: Iterable[Mapping[str, Any]],
) -> None:
    rejected = sum(rejects.values())
    in_files = sum(entry["rows"] for entry in rejects_entries)
    if rows_read != rows + rejected or rejected != in_files:
        raise ConservationError(
            f"{rows_read:,} rows read, but the output files hold {rows:,} rows and the rejects "
            f"files {in_files:,} of {rejected:,} rejects; nothing was committed. Work files may "
            "be damaged: remove _work/ and run again"
        )


def _read_bytes(folder: str, name: str) -> bytes:
    path = storage.join(folder, name)
    try:
        return storage.get_bytes(path)
    except OSError as error:
        # Beam's BeamIOError is an OSError as well.
        remedy = "let its run finish first" if name == SUCCESS_FILE else "make the output again"
        raise InputError(
            f"{folder} is no committed output: {path} cannot be read ({error}); give the folder "
            f"of a committed run, or {remedy}"
        ) from error


def _read_json(folder: str, name: str) -> dict[str, Any]:
    return _parse_object(storage.join(folder, name), _read_bytes(folder, name))


def _parse_object(path: str, data: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InputError(
            f"{path} is no JSON ({error}); give the folder of a run that this program committed"
        ) from error
    if not isinstance(body, dict):
        raise InputError(
            f"{path} holds a JSON {type(body).__name__}, not an object; give the folder of a run "
            "that this program committed"
        )
    return body
