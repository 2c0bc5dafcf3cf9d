"""Reads the blocks of a Markdown page and runs them, as someone who pastes them into one shell.

The shell stands in a folder that looks like a fresh checkout after its install, with a loopback hub
in the place of the real one. Three conventions of the pages:

- a `text` block right after a block that runs shows lines of its output, in order; `…` stands for
  anything, numbers with a point may differ a little, and seconds and rates at will;
- a block after `<!-- not run by the test: REASON -->` does not run;
- any other `text` block shows a layout, and nothing is made of it.
"""

from __future__ import annotations

import contextlib
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline import demo
from tests import commands
from tests.hub_server import TINY_VOCABULARY, HubServer, write_vocabulary
from transforms.experts import HUB_ADDRESS_VARIABLE

ROOT = Path(__file__).resolve().parents[1]


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


def normalize(line: str) -> str:
    """A line without what may differ: seconds, spaces, numbers with a point."""
    line = re.sub(r"\bin \d+\.\d s$", "in # s", line)
    line = re.sub(r"\b[\d,]+ tokens/s", "# tokens/s", line)
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
    """Someone who pastes a page's blocks into one shell, from the first one on."""

    def __init__(self, blocks: Sequence[Block], *, checkout: Checkout) -> None:
        self.folder = checkout.folder
        self.blocks = blocks
        self._env = checkout.env
        self._results: list[tuple[int, str]] = []

    def paste(self, number: int) -> tuple[int, str]:
        """Exit code and output of a block that runs; those before it run first."""
        while len(self._results) <= number:
            self._results.append(self._run(self.blocks[len(self._results)]))
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


def runnable(blocks: Sequence[Block]) -> list[Block]:
    """The blocks that run."""
    return [block for block in blocks if block.language != "text" and block.not_run is None]


@dataclass(frozen=True)
class Checkout:
    """What looks like a checkout after its install, and the environment of a shell in it."""

    folder: Path
    env: dict[str, str]
    hub: HubServer


@contextlib.contextmanager
def open_checkout(folder: Path) -> Iterator[Checkout]:
    """Make a checkout in `folder`, for whose readers make finds nothing to do."""
    # The models are made while the reader tries the demo, which needs none of them.
    models = folder.with_name(f"{folder.name}-models")
    making = commands.Command([str(models)], folder=models, module=__name__)
    folder.mkdir()
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
    short = Path(tempfile.mkdtemp(prefix="reader-"))
    with (
        HubServer.for_experts(models / "expert", models / "preprocess") as hub,
        socket.socket(socket.AF_UNIX) as listener,
    ):
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
            "COLUMNS": "120",
            "EXPERTS_DEMO_DIR": os.environ.get("EXPERTS_DEMO_DIR") or demo.default_folder(),
            HUB_ADDRESS_VARIABLE: hub.address,
        }
        yield Checkout(folder, env, hub)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    shutil.rmtree(short)


def check_block(reader: Reader, number: int) -> None:
    """Paste a block; it must end well and show what the page says that it shows."""
    block = reader.blocks[number]
    code, output = reader.paste(number)
    assert code == 0, output
    assert "Traceback" not in output
    missing = find_missing(block.expected or "", output)
    assert missing is None, f"the page shows {missing!r}; the output is\n{output}"
