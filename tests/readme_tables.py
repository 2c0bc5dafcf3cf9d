"""The tables of README.md that come from the code: `python -m tests.readme_tables` writes them.

Each stands between `<!-- NAME: … -->` and `<!-- /NAME -->`; tests/test_readme.py holds that they
are up to date.
"""

from __future__ import annotations

import re
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

# What a row can fail of after it was parsed; parse.REASONS has the others.
LATER_REASONS = {
    "duplicate_id": "An earlier row has the same id. Make ids unique.",
    "no_tokens": "The text is control characters or combining marks only, so no token is left.",
    "unknown_tokens_only": "The vocabulary has no piece of the text (emoji, a word over 100 bytes), "
    "so its vector would say nothing about it.",
    "text_too_long": "With `--long_text=reject`: the text has more than `--max_tokens` tokens.",
    "encoder_failed": "The expert fails on this row, and on no other of its batch.",
    "not_finite": "The vector has NaN or infinite numbers.",
    "zero_vector": "With `--normalize`: the vector is zero, so it has no direction.",
}


def make_tables() -> dict[str, str]:
    """Every table by the name of its marker."""
    return {
        "experts": make_experts_table(),
        "reasons": make_reasons_table(),
        "flags": make_flags_table(),
    }


def make_experts_table() -> str:
    """The experts that have a short name."""
    rows = [
        (f"`{info.name}`", info.trained_on, info.meant_for, str(info.width))
        for info in EXPERTS.values()
    ]
    return format_table(("`--expert`", "trained on", "meant for", "width"), rows)


def make_reasons_table() -> str:
    """The reason codes of rejects, in the order of the stages."""
    rows = [
        (f"`{reason}`", "read" if reason in FILE_REASONS else "parse", quote_flags(meaning))
        for reason, meaning in REASONS.items()
    ]
    rows += [
        (f"`{reason}`", stage_of(reason), meaning) for reason, meaning in LATER_REASONS.items()
    ]
    return format_table(("reason", "stage", "what it means, and what to do"), rows)


def make_flags_table() -> str:
    """The flags of `run`, as its parser and its settings have them."""
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


def quote_flags(text: str) -> str:
    """Text with its flags as code."""
    return re.sub(r"--[a-z_]+(=\w+(:\w+)?)?", r"`\g<0>`", text)


def describe_flag(one: Field[Any]) -> str:
    """A flag's help, and its choices."""
    choices = one.metadata["choices"]
    listed = ", ".join(f"`{choice}`" for choice in choices or ())
    return one.metadata["help"] + (f": {listed}" if choices else "")


def format_default(one: Field[Any]) -> str:
    """A flag's default as it is written on a command line; nothing for an empty one."""
    default = one.default
    if default in ("", (), MISSING):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def format_table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [headings, tuple("---" for _ in headings), *rows]
    # A bar would end a cell, and a bare <…> or address would become a tag or a link.
    cells = [[cell.replace("|", "\\|").replace(HUB_ADDRESS, f"`{HUB_ADDRESS}`") for cell in line]
             for line in lines]  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def find_table(text: str, name: str) -> re.Match[str]:
    """The table between its markers; group 2 is the table."""
    found = re.search(rf"(<!-- {name}: [^>]*-->\n\n)(.*?)(\n\n<!-- /{name} -->)", text, re.DOTALL)
    assert found is not None, f"README.md has no markers of the table {name!r}"
    return found


def main() -> None:
    """Write every table into README.md."""
    text = README.read_text(encoding="utf-8")
    for name, table in make_tables().items():
        found = find_table(text, name)
        text = text[: found.start(2)] + table + text[found.end(2) :]
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
