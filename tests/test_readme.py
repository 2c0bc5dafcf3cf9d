"""README.md: its tables are those of the code, and its commands do what it says.

The blocks run in order; tests/doc_reader.py says how.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from pipeline import launch, search, verify
from pipeline.options import RunSettings, parse_settings
from tests import commands
from tests.doc_reader import (
    Checkout,
    Reader,
    check_block,
    find_missing,
    open_checkout,
    read_blocks,
    runnable,
)
from tests.hub_server import PREPROCESSOR_PATH
from tests.readme_tables import (
    FILE_REASONS,
    LATER_REASONS,
    README,
    find_table,
    make_tables,
)
from transforms import errors
from transforms.parse import REASONS
from transforms.pooling import POOLINGS
from transforms.readers import READERS

ROOT = README.parent
NOT_RUN = [
    "it installs a package over the network",
    "it installs packages over the network; compared with the Makefile instead",
]


TEXT = README.read_text(encoding="utf-8")
BLOCKS = read_blocks(TEXT)
RUN = runnable(BLOCKS)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, demo_expert: object) -> Iterator[Checkout]:
    with open_checkout(tmp_path_factory.mktemp("readme") / "checkout") as made:
        yield made


@pytest.fixture(scope="module")
def reader(checkout: Checkout) -> Reader:
    return Reader(RUN, checkout=checkout)


@pytest.mark.integration
@pytest.mark.parametrize(
    "number", range(len(RUN)), ids=[f"line-{block.line}-{block.language}" for block in RUN]
)
def test_readme_block_pasted_does_what_it_shows(reader: Reader, number: int) -> None:
    check_block(reader, number)


@pytest.mark.integration
def test_readme_first_real_use_asks_the_hub_and_keeps_the_models(
    reader: Reader, checkout: Checkout
) -> None:
    number = next(k for k, block in enumerate(RUN) if "--expert=wiki_books" in block.code)
    reader.paste(number)
    kept = reader.folder / "home" / ".cache" / "tfhub"
    for path in ("/google/experts/bert/wiki_books/2", PREPROCESSOR_PATH):
        assert checkout.hub.requests[path] == 1
        entry = hashlib.sha1((checkout.hub.address + path).encode()).hexdigest()
        assert (kept / entry / "saved_model.pb").is_file()


@pytest.mark.integration
def test_readme_output_folder_holds_what_its_listing_names(reader: Reader) -> None:
    reader.paste(next(k for k, block in enumerate(RUN) if "messy/rejects" in block.code))
    listing = re.search(r"```text\nvectors/\n(.*?)```", TEXT, re.DOTALL)
    assert listing is not None
    named = {line.split()[0].replace("…", "*") for line in listing[1].splitlines()}
    messy = reader.folder / "messy"
    found = {str(path.relative_to(messy)) for path in messy.rglob("*") if path.is_file()}
    matched = {name: [path for path in found if Path(path).match(name)] for name in named}
    assert all(matched.values()), matched
    assert found == {path for paths in matched.values() for path in paths}


@pytest.mark.integration
def test_readme_columns_table_names_the_columns_of_an_output(reader: Reader) -> None:
    reader.paste(next(k for k, block in enumerate(RUN) if "--output=vectors" in block.code))
    table = re.search(r"\| column \|.*?\n\n", TEXT, re.DOTALL)
    assert table is not None
    named = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \|", table[0], re.MULTILINE)
    columns = [one["name"] for one in commands.read_manifest(reader.folder / "vectors")["columns"]]
    with_text = [name for names in named for name in names if name]
    assert [name for name in with_text if name not in ("text", "pair")] == columns[:-1]
    assert columns[-1] == "year"


@pytest.mark.integration
def test_readme_tfrecord_spec_is_that_of_the_writer(reader: Reader) -> None:
    import pyarrow as pa

    from transforms.writers import example_spec, output_schema

    schema = output_schema(
        embedding_columns={"embedding": 768}, metadata=pa.schema([("year", pa.int64())])
    )
    spec = example_spec(schema)
    year = '    "year": tf.io.RaggedFeature(tf.int64),\n'
    assert spec.replace(year, "") in TEXT
    assert year.strip().rstrip(",") in TEXT


@pytest.mark.parametrize("name", ["experts", "reasons"])
def test_readme_table_is_up_to_date(name: str) -> None:
    found = find_table(TEXT, name)[2]
    assert found == f"\n{make_tables()[name]}\n\n", "run python -m tests.readme_tables"


def test_readme_reason_codes_are_all_that_the_code_has() -> None:
    codes = set()
    for name in ("tokenize", "encode", "select"):
        tree = ast.parse((ROOT / "transforms" / f"{name}.py").read_text(encoding="utf-8"))
        codes |= {
            node.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.keyword)
            and node.arg == "reason"
            and isinstance(node.value, ast.Constant)
        }
    from transforms.encode import _BAD_VECTOR_MESSAGES
    from transforms.select import _STAGES

    codes |= {*_BAD_VECTOR_MESSAGES, *_STAGES, "encoder_failed"}
    assert codes == set(LATER_REASONS)
    assert set(FILE_REASONS) <= set(REASONS)


def test_readme_flags_are_those_of_run() -> None:
    own = {one.name for one in fields(RunSettings)} | {"config", "help"}
    for parser in (verify.make_parser(), search.make_parser()):
        own |= set(re.findall(r"--([a-z][\w-]*)", parser.format_help()))
    beam = {"runner", "direct_num_workers", "direct_running_mode"}
    others = {"require-hashes", "no-deps", "no-build-isolation"}  # of pip
    named = set(re.findall(r"(?<![\w-])--([a-z][\w-]*)", TEXT))
    assert named <= own | beam | others, named - own - beam - others
    parse_settings(["--input=x", "--output=y", *(f"--{name}=1" for name in beam)])


@pytest.mark.parametrize(
    ("heading", "names"),
    [("`--pooling`", list(POOLINGS)), ("`--input_format`", list(READERS))],
    ids=["poolings", "formats"],
)
def test_readme_table_by_hand_names_all_that_there_are(heading: str, names: list[str]) -> None:
    table = re.search(rf"^\| {heading} \|.*?\n\n", TEXT, re.MULTILINE | re.DOTALL)
    assert table is not None
    assert sorted(re.findall(r"^\| `(\w+)` \|", table[0], re.MULTILINE)) == sorted(names)


def test_readme_exit_codes_are_those_of_the_program() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)}
    known = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.UserError)
    }
    assert listed == {0, *known, launch.EXIT_FAILED, launch.EXIT_INTERRUPTED}


def test_readme_blocks_not_run_are_few_and_say_why() -> None:
    assert [block.not_run for block in BLOCKS if block.not_run is not None] == NOT_RUN
    assert {block.language for block in BLOCKS} == {"bash", "python", "text"}
    assert len(RUN) >= 9


def test_readme_install_without_make_is_what_make_does() -> None:
    (block,) = (block for block in BLOCKS if block.not_run == NOT_RUN[1])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    made = [
        line.strip()
        for target in ("run-installed", "package-installed")
        for line in re.findall(rf"^\$\(VENV\)/\.{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
        for line in line.splitlines()
        if "$(PIP)" in line
    ]
    prefix = ".venv/bin/python -m pip install "
    shown = [line.removeprefix(prefix) for line in block.code.splitlines() if prefix in line]
    assert shown == [line.removeprefix("@$(PIP) ") for line in made]
    assert len(shown) == 3


def test_readme_links_lead_to_files() -> None:
    linked = re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT)
    assert linked
    assert [name for name in linked if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize(
    ("expected", "output", "missing"),
    [
        ("a\nc 0.50\n", "x\na\nb\nc  0.52\n", None),
        ("a\nb\n", "b\na\n", "b"),
        ("cosine 0.5\n", "cosine 0.7\n", "cosine 0.5"),
        ("done, in 8.1 s\n", "done, in 912.0 s\n", None),
        ("3 rows\n", "4 rows\n", "3 rows"),
        ("in …/a.txt: 2\n", "in /x/y/a.txt: 2\n", None),
        ("in …/a.txt: 2\n", "in /x/y/a.txt: 3\n", "in …/a.txt: 2"),
    ],
    ids=["gap", "order", "number", "seconds", "count", "path", "path-and-count"],
)
def test_find_missing_names_the_line(expected: str, output: str, missing: str | None) -> None:
    assert find_missing(expected, output) == missing
