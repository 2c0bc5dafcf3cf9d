"""`python -m pipeline.report OUTPUT`: draws report.html again from report.json."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import orjson

from pipeline.commands import CommandParser, run_command
from transforms import storage
from transforms.errors import InputError


def _build_parser() -> CommandParser:
    parser = CommandParser(
        prog="python -m pipeline.report",
        description="Draw a committed output's report.html again, from its report.json alone. "
        "Nothing else in the output is read or changed.",
        allow_abbrev=False,
    )
    parser.add_argument("output", metavar="OUTPUT", help="the folder of a committed output")
    parser.add_argument(
        "--to",
        metavar="PATH",
        default="",
        help="the file to write; - is stdout (default: OUTPUT/report.html)",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="show library logs and stack traces (default: off)"
    )
    return parser


def draw_report(output: str) -> bytes:
    """The page of an output's report. Raises: InputError if there is no sound report.json."""
    from transforms.report import REPORT_FILE
    from transforms.report_html import render

    path = storage.join(output.rstrip("/") or output, REPORT_FILE)
    try:
        report = orjson.loads(storage.get_bytes(path))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error}); give the folder of a committed output"
        ) from error
    except orjson.JSONDecodeError as error:
        raise InputError(
            f"{path}: is no JSON ({error}); it was changed after the commit"
        ) from error
    if not isinstance(report, dict):
        raise InputError(f"{path}: holds no JSON object; it is not a report of this program")
    return render(report)


def _run(given: argparse.Namespace) -> int:
    page = draw_report(given.output)
    if given.to == "-":
        sys.stdout.buffer.write(page)
        return 0
    path = given.to or storage.join(given.output.rstrip("/") or given.output, "report.html")
    storage.put_bytes(path, page)
    print(path)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the page. Returns: the exit code."""
    return run_command(argv, parser=_build_parser(), command=_run)


if __name__ == "__main__":
    sys.exit(main())
