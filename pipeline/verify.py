"""`python -m pipeline.verify OUTPUT`: proves that an output is what its run committed."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.commands import CommandParser, add_expert_flags, count_of, run_command
from pipeline.launch import say
from transforms.errors import ConfigError, ExpertError

if TYPE_CHECKING:
    from transforms.verification import Check, Verification

EXIT_FAULTS = 1
_PROGRESS_SECONDS = 10.0


def make_parser() -> CommandParser:
    """The flags of the command."""
    parser = CommandParser(
        prog="python -m pipeline.verify",
        description="Prove that a committed output is what its run committed: files and checksums, "
        "rows, ids, vectors, rejects, and a sample of texts encoded again.",
        epilog="Exit codes: 0 all checks hold, 1 a check failed, 2 OUTPUT is no committed output "
        "or a flag is wrong. Rows count from 0 within their file. The sample's texts are those "
        "kept in the output (--keep_text of run), else they are read from the run's inputs; where "
        "texts or expert are gone, the sample is not checked, and that is said.",
        allow_abbrev=False,
    )
    parser.add_argument("output", metavar="OUTPUT", help="the folder that was --output of a run")
    parser.add_argument(
        "--sample",
        metavar="N",
        type=count_of(0),
        default=200,
        help="rows whose text is encoded again; 0 for none (default: 200)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON (default: a table)")
    parser.add_argument(
        "--verbose", action="store_true", help="show library logs and stack traces (default: off)"
    )
    add_expert_flags(parser)
    return parser


def verify(flags: argparse.Namespace) -> int:
    """Check, print, and return the exit code. Raises: UserError."""
    from transforms.verify import check_output

    output = flags.output.rstrip("/") or flags.output
    found = check_output(output, sample_rows=flags.sample, progress=show_progress())
    if found.manifest is not None:
        verify_sample(found, flags)
    print(format_json(found) if flags.json else format_table(found))
    return 0 if found.ok else EXIT_FAULTS


def verify_sample(found: Verification, flags: argparse.Namespace) -> None:
    """Encode the sample again, with the recorded expert. Raises: UserError."""
    from pipeline.api import Expert, compare_parts, recorded_settings, resolve_recorded
    from pipeline.launch import fingerprint_run
    from transforms.verify_sample import check_sample, find_texts

    assert found.manifest is not None
    if not flags.sample:
        found.skipped("sample", "--sample=0")
        return
    if not found.sample:
        found.skipped("sample", "the output has no row with a whole vector")
        return
    try:
        settings = recorded_settings(found.manifest, threads=flags.threads)
        expert = resolve_recorded(
            found.manifest,
            expert=flags.expert,
            preprocessor=flags.preprocessor,
            hub_address=flags.hub_address,
            progress=say,
        )
    except (ConfigError, ExpertError) as error:
        if flags.expert or flags.preprocessor:
            raise
        found.skipped(
            "sample",
            f"the expert cannot be had: {error}; name where it is with --expert (and "
            "--preprocessor)",
        )
        return
    recorded = found.manifest["fingerprint"]["parts"]
    differing = compare_parts(fingerprint_run(expert, settings)[1], recorded=recorded)
    if differing:
        found.fault(
            "sample",
            f"expert {expert.handle} is not the one that the manifest records: "
            f"{'; '.join(differing)} differ; give the right one with --expert",
        )
        found.passed("sample", "nothing was encoded")
        return
    texts = find_texts(found)
    encode: Callable[..., Any] | None = None

    def encode_texts(column: list[str], pairs: list[str] | None) -> Any:
        nonlocal encode
        encode = encode or Expert.from_resolved(expert, settings=settings).encode_rows
        return encode(column, pairs=pairs)

    check_sample(found, texts, encode=encode_texts)


def show_progress(*, clock: Callable[[], float] = time.monotonic) -> Callable[[str], None]:
    """What tells, now and then, how far a long check has come."""
    last = clock()

    def show(line: str) -> None:
        nonlocal last
        if clock() - last >= _PROGRESS_SECONDS:
            last = clock()
            say(line)

    return show


def format_table(found: Verification) -> str:
    """The checks one a line, each fault below its check, and what it comes to."""
    checks = list(found.checks.values())
    name_width = max(len(check.name) for check in checks)
    state_width = max(len(check.state) for check in checks)
    lines = []
    for check in checks:
        lines.append(
            f"{check.name.ljust(name_width)}  {check.state.ljust(state_width)}  {_detail(check)}"
        )
        indent = " " * (name_width + 2)
        for fault in check.faults:
            where = fault.file or ""
            where += "" if fault.row is None else f" row {fault.row}"
            lines.append(f"{indent}{where}{': ' if where else ''}{fault.message}")
        if check.fault_count > len(check.faults):
            lines.append(f"{indent}and {check.fault_count - len(check.faults):,} more")
    lines += [f"note: {note}" for note in found.notes]
    return "\n".join([*lines, summarize(found)])


def _detail(check: Check) -> str:
    if not check.fault_count:
        return check.detail
    faults = f"{check.fault_count:,} fault{'s' if check.fault_count > 1 else ''}"
    return f"{faults}; {check.detail}"


def summarize(found: Verification) -> str:
    """One line of what the checks come to."""
    names = {
        state: [check.name for check in found.checks.values() if check.state == state]
        for state in ("FAILED", "not checked")
    }
    left = f"; not checked: {', '.join(names['not checked'])}" if names["not checked"] else ""
    if names["FAILED"]:
        return f"{found.output}: FAILED: {', '.join(names['FAILED'])}{left}"
    return f"{found.output}: {'all that was checked holds' if left else 'all checks hold'}{left}"


def format_json(found: Verification) -> str:
    """The same as JSON."""
    from transforms.verification import CHECKS

    body = {
        "output": found.output,
        "ok": found.ok,
        "checks": [
            {
                "name": check.name,
                "proves": CHECKS[check.name],
                "state": check.state,
                "detail": check.detail,
                "fault_count": check.fault_count,
                "faults": [
                    {"file": fault.file, "row": fault.row, "message": fault.message}
                    for fault in check.faults
                ],
            }
            for check in found.checks.values()
        ],
        "notes": found.notes,
    }
    return orjson.dumps(body, option=orjson.OPT_INDENT_2).decode()


def main(argv: Sequence[str] | None = None) -> int:
    """Verify an output; returns the exit code."""
    return run_command(argv, parser=make_parser(), command=verify)


if __name__ == "__main__":
    sys.exit(main())
