"""README.md: its tables are those of the code, and its commands do what it says.

The blocks run in order, in a folder that looks like a fresh checkout after its install, with a
loopback hub in the place of the real one. Three conventions of the README:

- a `text` block right after a block that runs shows lines of its output, in order; `…` stands for
  anything, numbers with a point may differ a little, and seconds at will;
- a block after `<!-- not run by the test: REASON -->` does not run;
- any other `text` block shows a layout, and nothing is made of it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from pipeline import demo, launch
from pipeline.options import RunSettings, parse_settings
from tests import commands
from tests.hub_server import PREPROCESSOR_PATH, TINY_VOCABULARY, HubServer, write_vocabulary
from tests.readme_tables import (
    FILE_REASONS,
    LATER_REASONS,
    README,
    find_table,
    make_tables,
)
from transforms import errors
from transforms.experts import HUB_ADDRESS_VARIABLE
from transforms.parse import REASONS
from transforms.pooling import POOLINGS
from transforms.readers import READERS

ROOT = README.parent
NOT_RUN = [
    "it installs a package over the network",
    "it installs packages over the network; compared with the Makefile instead",
]


@dataclass(frozen=True)
class Block:
    """A fenced block; `expected` is the `text` block right after it."""

    line: int
    language: str
    code: str
    not_run: str | None = None
    expected: str | None = None


def read_blocks(text: str) -> list[Block]:
    """The blocks of a Markdown text, each with what it should print."""
    pattern = re.compile(
        r"^(?:<!-- not run by the test: (?P<reason>[^>]*) -->\n)?"
        r"```(?P<language>\w*)\n(?P<code>.*?)^```$"
        r"(?:\n\n```text\n(?P<expected>.*?)^```$)?",
        re.MULTILINE | re.DOTALL,
    )
    return [
        Block(
            text.count("\n", 0, found.start()) + 1,
            found["language"],
            found["code"],
            found["reason"],
            found["expected"],
        )
        for found in pattern.finditer(text)
    ]


TEXT = README.read_text(encoding="utf-8")
BLOCKS = read_blocks(TEXT)
RUN = [block for block in BLOCKS if block.language != "text" and block.not_run is None]


def normalize(line: str) -> str:
    """A line without what may differ: seconds, spaces, numbers with a point."""
    line = re.sub(r"\bin \d+\.\d s$", "in # s", line)
    return re.sub(r"\s+", " ", re.sub(r"\d*\.\d+", "#", line)).strip()


def shows(wanted: str, line: str) -> bool:
    """Whether a line of output is what a line of the README shows."""
    pattern = ".*".join(map(re.escape, normalize(wanted).split("…")))
    if re.fullmatch(pattern, normalize(line)) is None:
        return False
    if wanted.endswith(" s") or "…" in wanted:
        return True
    numbers = [list(map(float, re.findall(r"\d*\.\d+", one))) for one in (wanted, line)]
    return numbers[0] == pytest.approx(numbers[1], abs=0.05)


def find_missing(expected: str, output: str) -> str | None:
    """The first of the expected lines that does not stand in the output, in their order."""
    lines = iter(output.splitlines())
    for wanted in expected.splitlines():
        if not any(shows(wanted, line) for line in lines):
            return wanted
    return None


def main(arguments: Sequence[str]) -> int:
    """What `commands.Command` does here in a process of its own: run a script, or make models."""
    if arguments[0].endswith(".py"):
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        make_models(Path(arguments[0]))
    return 0


def make_models(folder: Path) -> None:
    """Write an expert that is as wide and as long as the real ones, and else tiny."""
    from transforms import bert_savedmodel

    vocab_file = write_vocabulary(folder / "vocab.txt", TINY_VOCABULARY)
    config = bert_savedmodel.BertConfig(
        vocab_size=len(TINY_VOCABULARY), width=768, layers=2, heads=12, intermediate=16
    )
    weights = bert_savedmodel.random_weights(config, seed=3)
    bert_savedmodel.build_encoder(
        folder / "expert", config=config, weights=weights, vocab_file=vocab_file
    )
    bert_savedmodel.build_preprocessor(folder / "preprocess", vocab_file=vocab_file)


# Stands for the environment's python: asks the test to run a command of ours or a script in a
# process that has the imports behind it, and is the real one for anything else.
_PYTHON = """\
#!{python} -IS
import json, os, socket, sys
arguments = sys.argv[1:]
ours = arguments[:1] == ["-m"] and arguments[1].startswith("pipeline.")
if "MAKELEVEL" in os.environ or not (ours or arguments[0].endswith(".py")):
    os.execv({python!r}, [{python!r}, *arguments])
with socket.socket(socket.AF_UNIX) as client:
    client.connect({address!r})
    call = dict(arguments=arguments, folder=os.getcwd(), env=dict(os.environ))
    client.sendall(json.dumps(call).encode())
    client.shutdown(socket.SHUT_WR)
    answer = json.loads(b"".join(iter(lambda: client.recv(65536), b"")))
sys.stdout.write(answer["out"])
sys.stderr.write(answer["err"])
sys.exit(answer["code"])
"""

_ACTIVATE = 'export PATH="$PWD/.venv/bin:$PATH"\n'


def answer_calls(listener: socket.socket, *, models: commands.Command) -> None:
    """Run what the stand-in for python asks for, one call after the other, until closed."""
    made = models.wait()
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            with connection.makefile() as file:
                call = json.load(file)
            result = made if made.code else run_python(call)
            connection.sendall(
                json.dumps({"code": result.code, "out": result.out, "err": result.err}).encode()
            )


def run_python(call: dict[str, Any]) -> commands.Result:
    """Run `python -m module …` or `python file.py`."""
    arguments, module = call["arguments"], __name__
    if arguments[0] == "-m":
        module, arguments = arguments[1], arguments[2:]
    command = commands.Command(
        arguments, folder=Path(call["folder"]), module=module, env=call["env"]
    )
    return command.wait(seconds=120)


class Reader:
    """Someone who pastes the README's blocks into one shell, from the first one on."""

    def __init__(self, folder: Path, *, env: dict[str, str]) -> None:
        self.folder = folder
        self._env = env
        self._results: list[tuple[int, str]] = []

    def paste(self, number: int) -> tuple[int, str]:
        """Exit code and output of a block that runs; those before it run first."""
        while len(self._results) <= number:
            self._results.append(self._run(RUN[len(self._results)]))
        return self._results[number]

    def _run(self, block: Block) -> tuple[int, str]:
        code = block.code
        if block.language == "python":
            (self.folder / "block.py").write_text(code, encoding="utf-8")
            code = "python block.py\n"
        # What a block exports holds for those after it, as in one shell.
        state = self.folder / ".exported"
        script = f"[ ! -e {state} ] || source {state}\n{code}\nexport -p > {state}\n"
        done = subprocess.run(
            ["bash", "-e", "-u", "-o", "pipefail", "-c", script],
            cwd=self.folder,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=150,
        )
        return done.returncode, done.stdout


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the models of the hub are made in."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def hub(models: Path) -> Iterator[HubServer]:
    """A hub whose models are made by the time that it is asked for one."""
    with HubServer.for_experts(models / "expert", models / "preprocess") as server:
        yield server


@pytest.fixture(scope="module")
def reader(
    tmp_path_factory: pytest.TempPathFactory, models: Path, hub: HubServer, demo_expert: object
) -> Iterator[Reader]:
    """A reader in what looks like a checkout after its install: make finds nothing to do."""
    # The models are made while the reader tries the demo, which needs none of them.
    making = commands.Command([str(models)], folder=models, module=__name__)
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("pipeline", "transforms", "configs", "Makefile", "setup.py", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    for path in ROOT.glob("requirements*.txt"):
        (folder / path.name).symlink_to(path)
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "activate").write_text(_ACTIVATE)
    for stamp in ("created", "run-installed", "package-installed"):
        (folder / ".venv" / f".{stamp}").touch()
    home = folder / "home"
    home.mkdir()
    # The path of a socket has about 100 characters at most.
    short = Path(tempfile.mkdtemp(prefix="readme-"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short / "python"))
        listener.listen()
        python = binaries / "python"
        python.write_text(_PYTHON.format(python=sys.executable, address=str(short / "python")))
        python.chmod(0o755)
        thread = threading.Thread(
            target=answer_calls, args=(listener,), kwargs={"models": making}, daemon=True
        )
        thread.start()
        env = {
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "EXPERTS_DEMO_DIR": os.environ.get("EXPERTS_DEMO_DIR") or demo.default_folder(),
            HUB_ADDRESS_VARIABLE: hub.address,
        }
        yield Reader(folder, env=env)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    shutil.rmtree(short)


@pytest.mark.integration
@pytest.mark.parametrize(
    "number", range(len(RUN)), ids=[f"line-{block.line}-{block.language}" for block in RUN]
)
def test_readme_block_pasted_does_what_it_shows(reader: Reader, number: int) -> None:
    code, output = reader.paste(number)
    assert code == 0, output
    assert "Traceback" not in output
    missing = find_missing(RUN[number].expected or "", output)
    assert missing is None, f"the README shows {missing!r}; the output is\n{output}"


@pytest.mark.integration
def test_readme_first_real_use_asks_the_hub_and_keeps_the_models(
    reader: Reader, hub: HubServer
) -> None:
    number = next(k for k, block in enumerate(RUN) if "--expert=wiki_books" in block.code)
    reader.paste(number)
    kept = reader.folder / "home" / ".cache" / "tfhub"
    for path in ("/google/experts/bert/wiki_books/2", PREPROCESSOR_PATH):
        assert hub.requests[path] == 1
        entry = hashlib.sha1((hub.address + path).encode()).hexdigest()
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


@pytest.mark.parametrize("name", ["experts", "reasons", "flags"])
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
