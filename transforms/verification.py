"""What is found out about a committed output: checks, and faults with their file and row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from transforms.records import FloatArray

FAULTS_KEPT = 20

# What each check proves, in the order of the table.
CHECKS = {
    "manifest": "_SUCCESS names the manifest by its sha256",
    "totals": "the manifest's counts add up",
    "files": "every file is there in its size, and none besides",
    "checksums": "every file has its sha256",
    "schema": "every file has the columns of the manifest",
    "fingerprint": "every file names the fingerprint of the manifest",
    "rows": "every file can be read and has its rows",
    "ids": "every row has an id that no other row has",
    "vectors": "every vector is whole, finite and not zero",
    "texts": "every row's text_sha256 and n_tokens can be",
    "rejects": "every reject can be read, and they are those counted",
    "sample": "texts encoded again give the vectors",
}

OK, FAILED, NOT_CHECKED = "ok", "FAILED", "not checked"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that does not hold, and where."""

    message: str
    file: str | None = None
    row: int | None = None


@dataclass(slots=True)
class Check:
    """One check: its state, what was looked at or why not, and the first faults."""

    name: str
    state: str = NOT_CHECKED
    detail: str = "an earlier check failed"
    faults: list[Fault] = field(default_factory=list)
    fault_count: int = 0


@dataclass(frozen=True, slots=True)
class SampleRow:
    """A row that is to be encoded again; `vector` is float32 [W] as it is stored."""

    file: str
    row: int
    id: str
    text_sha256: str
    vector: FloatArray
    n_tokens: int | None
    truncated: bool | None
    text: str | None = None
    pair: str | None = None


class Verification:
    """What is known of an output so far.

    manifest is None if there is none that can be read; notes are not faults.
    """

    def __init__(self, output: str) -> None:
        self.output = output
        self.manifest: dict[str, Any] | None = None
        self.checks = {name: Check(name) for name in CHECKS}
        self.notes: list[str] = []
        self.sample: list[SampleRow] = []

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not any(check.state == FAILED for check in self.checks.values())

    def passed(self, name: str, detail: str) -> None:
        """Say what was looked at; the check holds unless it has a fault."""
        check = self.checks[name]
        check.detail = detail
        check.state = FAILED if check.fault_count else OK

    def skipped(self, name: str, reason: str) -> None:
        """Say why a check was not made."""
        self.checks[name].state, self.checks[name].detail = NOT_CHECKED, reason

    def fault(
        self, name: str, message: str, *, file: str | None = None, row: int | None = None
    ) -> None:
        """Note a fault; beyond the first few they are only counted."""
        check = self.checks[name]
        check.state = FAILED
        check.fault_count += 1
        if len(check.faults) < FAULTS_KEPT:
            check.faults.append(Fault(message, file, row))

    def row_faults(
        self, name: str, message: str | Callable[[int], str], *, file: str, rows: Iterable[int]
    ) -> None:
        """Note a fault of each of some rows; a message that must be made is made when kept."""
        for row in rows:
            kept = len(self.checks[name].faults) < FAULTS_KEPT
            text = message if isinstance(message, str) else message(row) if kept else ""
            self.fault(name, text, file=file, row=int(row))
