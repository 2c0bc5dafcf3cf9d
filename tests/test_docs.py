"""docs/: every command shown is run, every link leads somewhere, the reference is up to date.

The pages run in the order of PAGES, in one shell; tests/doc_reader.py says how.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doc_reader import (
    ROOT,
    Checkout,
    Reader,
    check_block,
    open_checkout,
    read_blocks,
    runnable,
)
from tests.reference_doc import REFERENCE, known_flags, make_reference

DOCS = ROOT / "docs"
PAGES = [
    DOCS / "tutorial.md",
    DOCS / "how-to" / "backfill.md",
    DOCS / "how-to" / "nightly.md",
    DOCS / "how-to" / "long-documents.md",
    DOCS / "how-to" / "colab.md",
    DOCS / "how-to" / "from-vectorhub.md",
    DOCS / "explanation.md",
    DOCS / "testing.md",
]
NOT_RUN = [
    "it installs a package over the network",
    "it needs Colab and a Google account",
    "it needs Colab and installs packages over the network",
]
ALL = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
ABOUT_COMMANDS = [path for path in ALL if path.name != "CONTRIBUTING.md"]
TEXTS = {path: path.read_text(encoding="utf-8") for path in ALL}
BLOCKS = [(path, block) for path in PAGES for block in read_blocks(TEXTS[path])]
RUN = [(path, block) for path, block in BLOCKS if runnable([block])]

# Flags that the pages name and that are no command's of ours.
OTHERS_FLAGS = {
    "direct_num_workers", "direct_running_mode", "runner",  # Beam
    "no-build-isolation", "no-deps", "python", "require-hashes", "without-pip",  # pip and venv
    "no_auth", "dry_run", "sdk_location",  # Beam, of Dataflow
}  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, demo_expert: object) -> Iterator[Checkout]:
    with open_checkout(tmp_path_factory.mktemp("docs") / "checkout") as made:
        yield made


@pytest.fixture(scope="module")
def reader(checkout: Checkout) -> Reader:
    return Reader([block for _, block in RUN], checkout=checkout)


@pytest.mark.integration
@pytest.mark.parametrize(
    "number", range(len(RUN)), ids=[f"{path.stem}-line-{block.line}" for path, block in RUN]
)
def test_docs_block_pasted_does_what_it_shows(reader: Reader, number: int) -> None:
    check_block(reader, number)


def test_docs_pages_with_commands_are_all_run() -> None:
    pages = [path for path in DOCS.rglob("*.md") if re.search(r"```(bash|python)", TEXTS[path])]
    assert {path for path, _ in RUN} == set(pages)
    assert len(RUN) >= 20


def test_docs_blocks_not_run_are_few_and_say_why() -> None:
    assert [block.not_run for _, block in BLOCKS if block.not_run is not None] == NOT_RUN
    assert {block.language for _, block in BLOCKS} <= {"bash", "python", "text"}


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_docs_links_lead_to_files_and_headings(path: Path) -> None:
    missing = []
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", TEXTS[path]):
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        if not linked.is_relative_to(ROOT) or not linked.exists():
            missing.append(target)
        elif anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            if anchor not in map(slug, headings):
                missing.append(target)
    assert missing == []


def test_docs_index_links_every_page() -> None:
    index = DOCS / "index.md"
    linked = re.findall(r"\]\(([^)#]+\.md)", TEXTS[index])
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} - {"index.md"}
    assert set(linked) == pages | {"../README.md"}
    assert "docs/index.md" in TEXTS[ROOT / "README.md"]


def test_docs_reference_is_up_to_date() -> None:
    assert TEXTS[REFERENCE] == make_reference(), "run python -m tests.reference_doc"


@pytest.mark.parametrize("path", ABOUT_COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_docs_flags_are_those_of_the_commands(path: Path) -> None:
    lines = [line for line in TEXTS[path].splitlines() if "benchmarks" not in line]
    named = set(re.findall(r"(?<![\w-])--([a-z][\w-]*)", "\n".join(lines)))
    assert named <= known_flags() | OTHERS_FLAGS


def test_docs_tests_that_are_named_are_there() -> None:
    named = {name for text in TEXTS.values() for name in re.findall(r"\b(test_\w+\.py)\b", text)}
    assert [name for name in sorted(named) if not (ROOT / "tests" / name).is_file()] == []


def test_docs_name_no_folder_of_a_developer() -> None:
    spots = [
        (path.name, found)
        for path, text in TEXTS.items()
        for found in re.findall(r"/(?:work|root|tmp/w|home/\w+)/\S*", text)
    ]
    assert spots == []


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("Why mean pooling", "why-mean-pooling"),
        ("If it stops, and why", "if-it-stops-and-why"),
        ("`--limit` and ids", "--limit-and-ids"),
    ],
)
def test_slug_is_the_anchor_that_github_makes(heading: str, anchor: str) -> None:
    assert slug(heading) == anchor
