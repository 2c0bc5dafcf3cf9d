"""The tables of README.md that come from the code: `python -m tests.readme_tables` writes them.

Each stands between `<!-- NAME: … -->` and `<!-- /NAME -->`; tests/test_readme.py holds that they
are up to date.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from pipeline.options import RunSettings, make_parser
from transforms.experts import EXPERTS, HUB_ADDRESS
from transforms.parse import REASONS
from transforms.select import stage_of

README = Path(__file__).resolve().parents[1] / "README.md"

# Reasons of a file and not of a row; with --on_bad_file=reject they are rejects of stage "read".
FILE_REASONS = ("truncated_file", "corrupt_file", "unreadable_file", "schema_mismatch")

# What a row can fail of after it was parsed, and what that means; parse.REASONS has the others.
LATER_REASONS = {
    "duplicate_id": "an earlier row has the id",
    "no_tokens": "only control characters or combining marks",
    "unknown_tokens_only": "no part of the text is in the vocabulary, as with emoji",
    "text_too_long": "with `--long_text=reject`",
    "encoder_failed": "the expert fails on this row, but not on others",
    "not_finite": "NaN or infinity in the vector",
    "zero_vector": "with `--normalize`",
}


def make_tables() -> dict[str, str]:
    """Every table by the name of its marker."""
    return {
        "experts": make_experts_table(),
        "reasons": make_reasons_table(),
    }


def make_experts_table() -> str:
    """The experts that have a short name."""
    rows = [
        (f"`{info.name}`", info.trained_on, info.meant_for, str(info.width))
        for info in EXPERTS.values()
    ]
    return format_table(("`--expert`", "trained on", "meant for", "width"), rows)


def make_reasons_table() -> str:
    """The reason codes of rejects by stage, in the order of the stages."""
    codes: dict[str, list[str]] = {"read": [], "parse": []}
    for reason in REASONS:
        codes["read" if reason in FILE_REASONS else "parse"].append(f"`{reason}`")
    for reason, meaning in LATER_REASONS.items():
        codes.setdefault(stage_of(reason), []).append(f"`{reason}` ({meaning})")
    rows = [(f"`{stage}`", ", ".join(reasons)) for stage, reasons in codes.items()]
    return format_table(("stage", "reason codes"), rows)


def make_flags_table() -> str:
    """The flags of `run`, as its parser and its settings have them; for docs/reference.md."""
    titles = {
        action.dest: group.title
        for group in make_parser()._action_groups
        for action in group._group_actions
    }
    rows = [("`--config`", "a YAML file of these flags; flags win over the file", "")]
    title = ""
    for one in fields(RunSettings):
        if titles[one.name] != title:
            title = str(titles[one.name])
            rows.append((f"**{title}**", "", ""))
        rows.append((f"`--{one.name}`", describe_flag(one), format_default(one)))
    return format_table(("flag", "what it does", "default"), rows)


def describe_flag(one: Field[Any]) -> str:
    """A flag's help, and its choices."""
    choices = one.metadata["choices"]
    listed = ", ".join(f"`{choice}`" for choice in choices or ())
    return f"{one.metadata['help']}{': ' if choices else ''}{listed}"


def format_default(one: Field[Any]) -> str:
    """A flag's default as it is written on a command line; nothing for an empty one."""
    default = one.default
    if default in ("", (), MISSING):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def format_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, without a line feed at its end."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(quote_cell, line))} |" for line in lines)


def quote_cell(text: str) -> str:
    """Text for a cell: a bar would end it, and a bare address would become a link."""
    return text.replace("|", "\\|").replace(HUB_ADDRESS, f"`{HUB_ADDRESS}`")


def find_table(text: str, name: str) -> re.Match[str]:
    """What stands between a table's markers, as group 2."""
    found = re.search(rf"(<!-- {name}: [^>]*-->\n)(.*?)<!-- /{name} -->", text, re.DOTALL)
    assert found is not None, f"README.md has no markers of the table {name!r}"
    return found


def main() -> None:
    """Write every table into README.md."""
    text = README.read_text(encoding="utf-8")
    for name, table in make_tables().items():
        found = find_table(text, name)
        text = f"{text[: found.start(2)]}\n{table}\n\n{text[found.end(2) :]}"
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
