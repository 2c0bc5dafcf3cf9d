"""`python -m pipeline.experts`: the experts, what each learned from and what it is good for."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from transforms.experts import EXPERTS, ExpertInfo

_HEADINGS = ("expert", "trained on", "meant for", "width", "handle")


def format_table(experts: Sequence[ExpertInfo]) -> str:
    """Lay experts out in columns, one a line, below a line of headings."""
    rows = [
        _HEADINGS,
        *(
            (info.name, info.trained_on, info.meant_for, str(info.width), info.handle)
            for info in experts
        ),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def format_json(experts: Sequence[ExpertInfo]) -> str:
    """All that is known of the experts, as a JSON array."""
    return json.dumps([asdict(info) for info in experts], indent=2, ensure_ascii=False)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.experts",
        description="List the experts that --expert knows by a short name.",
        epilog="--expert of `run` takes any other TF-Hub or Kaggle handle, or a path, as well.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--json", action="store_true", help="print all that is known of each as JSON (default: off)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the list. Returns: the exit code."""
    arguments = _build_parser().parse_args(argv)
    experts = tuple(EXPERTS.values())
    print(format_json(experts) if arguments.json else format_table(experts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
