"""`python -m pipeline.search OUTPUT "text"`: the rows of an output that are nearest to a text."""

from __future__ import annotations

import argparse
import base64
import shutil
import sys
import time
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.commands import CommandParser, add_expert_flags, count_of, run_command
from pipeline.launch import say
from pipeline.options import suggest
from transforms.errors import ConfigError

if TYPE_CHECKING:
    from transforms.records import FloatArray
    from transforms.search import SearchResult

_TERMINAL_WIDTH = 120  # where there is no terminal to ask
_LEAST_TEXT_WIDTH = 20
_WIDEST_CELL = 24


def make_parser() -> CommandParser:
    """The flags of the command."""
    parser = CommandParser(
        prog="python -m pipeline.search",
        description="Print the rows of a committed output that are nearest to a text, or to one of "
        "its rows. Exact; every vector is looked at. The text is encoded with the expert, pooling, "
        "normalisation and token limit that the output records.",
        epilog="Exit codes: 0 searched, also if there is no row; 2 OUTPUT is no committed output, "
        "the expert cannot be had or is another, there is no such id, or a flag is wrong.",
        allow_abbrev=False,
    )
    parser.add_argument("output", metavar="OUTPUT", help="the folder that was --output of a run")
    parser.add_argument("text", metavar="TEXT", nargs="?", help="the text to search for")
    parser.add_argument(
        "--id", metavar="ROW_ID", help="search for what is near this row; it is itself left out"
    )
    parser.add_argument(
        "--k", metavar="N", type=count_of(1), default=10, help="rows to print (default: 10)"
    )
    parser.add_argument(
        "--metric",
        choices=("cosine", "dot"),
        default="cosine",
        help="cosine, or dot: the product of the vectors as they are (default: cosine)",
    )
    parser.add_argument(
        "--columns",
        metavar="NAMES",
        action="append",
        help="columns to print, comma-separated (default: text and metadata)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON (default: a table)")
    parser.add_argument(
        "--verbose", action="store_true", help="show library logs and stack traces (default: off)"
    )
    add_expert_flags(parser)
    return parser


def search(flags: argparse.Namespace) -> int:
    """Search, print, and return the exit code. Raises: UserError."""
    from transforms.manifest import read_manifest
    from transforms.search import read_hits, search_rows

    if (flags.text is None) == (flags.id is None):
        raise ConfigError(
            "give a text to search for, or --id=ROW_ID of a row; one of the two"
            " (python -m pipeline.search OUTPUT 'text')"
        )
    output = flags.output.rstrip("/") or flags.output
    manifest = read_manifest(output)
    columns = choose_columns(flags.columns, manifest)
    rows = manifest["totals"]["rows"]
    query = None if not rows and flags.id is None else make_query(output, manifest, flags)
    started = time.monotonic()
    if query is None:
        found = _nothing()
    else:
        found = search_rows(
            output, manifest, query=query, k=flags.k, metric=flags.metric, skip_id=flags.id
        )
    seconds = time.monotonic() - started
    values = read_hits(output, manifest, found.hits, columns=columns)
    if flags.json:
        print(format_json(found, values, flags=flags, output=output))
    elif found.hits:
        print(format_table(found, values, columns=columns, width=terminal_width()))
    say(f"{output}: searched {found.rows:,} rows in {seconds:.1f} s")
    if found.rows_not_finite:
        say(
            f"left out {found.rows_not_finite:,} rows whose vectors are not finite; see "
            f"python -m pipeline.verify {output}"
        )
    return 0


def _nothing() -> SearchResult:
    from transforms.search import SearchResult

    return SearchResult((), 0)


def make_query(output: str, manifest: Mapping[str, Any], flags: argparse.Namespace) -> FloatArray:
    """The vector to search for, float32 [W]. Raises: UserError."""
    from transforms.search import find_row

    if flags.id is not None:
        return find_row(output, manifest, flags.id)[1]
    from pipeline.api import load_recorded

    expert = load_recorded(
        manifest,
        expert=flags.expert,
        preprocessor=flags.preprocessor,
        hub_address=flags.hub_address,
        threads=flags.threads,
        progress=say,
    )
    try:
        return expert.encode(flags.text)
    except ValueError as error:
        raise ConfigError(f"the text to search for: {error}") from error


def choose_columns(given: Sequence[str] | None, manifest: Mapping[str, Any]) -> list[str]:
    """The columns to print, `id` aside. Raises: ConfigError for one that is not there."""
    from transforms.search import shown_columns

    if given is None:
        return shown_columns(manifest)
    names = [name.strip() for value in given for name in value.split(",") if name.strip()]
    known = [column["name"] for column in manifest["columns"]]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"--columns: the output has no column {name!r}{suggest(name, known)}; it has "
                f"{', '.join(known)}"
            )
    return [name for name in dict.fromkeys(names) if name != "id"]


def terminal_width() -> int:
    """Columns of the terminal."""
    return shutil.get_terminal_size((_TERMINAL_WIDTH, 24)).columns


def format_table(
    found: SearchResult, values: Sequence[Mapping[str, Any]], *, columns: Sequence[str], width: int
) -> str:
    """Rank, score, id and columns in lines of at most `width`; text stands last and is cut."""
    last = [name for name in ("text", "pair") if name in columns]
    names = [name for name in columns if name not in last]
    table = [["rank", "score", "id", *names]]
    for rank, (hit, value) in enumerate(zip(found.hits, values, strict=True), 1):
        cells = [fit(show_value(value[name]), _WIDEST_CELL).rstrip() for name in names]
        table.append([str(rank), f"{hit.score:.4f}", show_value(hit.id), *cells])
    widths = [max(map(display_width, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(fit, row, widths)) for row in table]
    if last:
        room = width - display_width(lines[0]) - 2 * len(last)
        share = max(room // len(last), _LEAST_TEXT_WIDTH)
        texts = [last, *([show_value(value[name]) for name in last] for value in values)]
        lines = [
            "  ".join([line, *(fit(text, share) for text in row)])
            for line, row in zip(lines, texts, strict=True)
        ]
    return "\n".join(line.rstrip() for line in lines)


def show_value(value: object) -> str:
    """A value in a line: nothing that moves the cursor or colours the terminal gets through."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else str(value)
    return "".join(
        " " if letter.isspace() else letter if letter.isprintable() else "\ufffd" for letter in text
    ).strip()


def display_width(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(map(_letter_width, text))


def _letter_width(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def fit(text: str, width: int) -> str:
    """Pad or cut a text to `width` columns; what was cut ends in an ellipsis."""
    wide = display_width(text)
    if wide <= width:
        return text + " " * (width - wide)
    kept, used = [], 1
    for letter in text:
        used += _letter_width(letter)
        if used > width:
            break
        kept.append(letter)
    cut = "".join(kept) + "…"
    return cut + " " * (width - display_width(cut))


def format_json(
    found: SearchResult,
    values: Sequence[Mapping[str, Any]],
    *,
    flags: argparse.Namespace,
    output: str,
) -> str:
    """The same as JSON; bytes are base64, times and the like as Python prints them."""
    query = {"text": flags.text} if flags.id is None else {"id": flags.id}
    body = {
        "output": output,
        "query": query,
        "metric": flags.metric,
        "rows_searched": found.rows,
        "rows_not_finite": found.rows_not_finite,
        "rows": [
            {"rank": rank, "id": hit.id, "score": hit.score, "columns": dict(value)}
            for rank, (hit, value) in enumerate(zip(found.hits, values, strict=True), 1)
        ],
    }
    options = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    return orjson.dumps(body, option=options, default=_as_json).decode()


def _as_json(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Search an output; returns the exit code."""
    return run_command(argv, parser=make_parser(), command=search)


if __name__ == "__main__":
    sys.exit(main())
