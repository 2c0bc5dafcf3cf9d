"""A million rows, killed twenty times: `python -m benchmarks.faults`.

Runs the real command with an expert that costs nothing, so that what is measured is the pipeline:
once undisturbed, then killed (SIGKILL) at random moments and started again until it commits. Every
committed output is compared with the undisturbed one, row by row, and a sample of both with vectors
that are computed here from the token ids. A job that commits before all kills are spent is followed
by another one.

The expert's calls are counted in the command's own process, in a file that outlives a kill: so the
rows that were encoded twice are known, also those of a call whose result was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.fault_experts import build_free_expert, build_preprocessor, make_tables, states_of
from tests.fault_hooks import Setup, count_encoded

ROWS_PER_FILE = 100_000
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
# fmt: off
WORDS = (
    "the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "as", "was", "with", "his",
    "on", "be", "at", "by", "had", "not", "are", "but", "from", "have", "this", "patient",
    "dose", "aspirin", "surgery", "music", "water", "mountain", "bread", "morning", "friend",
    "river", "summer", "history", "market", "station", "engine", "letter", "number", "window",
    "garden", "kitchen", "winter", "doctor", "island", "teacher",
)
# fmt: on
ROOT = Path(__file__).parents[1]


def main() -> int:
    """Run the benchmark; 0 if nothing was lost and nothing stands twice."""
    options = parse_options()
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=options.folder))
    try:
        return run_benchmark(options, folder)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=20, help="kills (default: %(default)s)")
    parser.add_argument("--width", type=int, default=128, help="of a vector (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default: %(default)s)")
    parser.add_argument("--json", help="a file for the figures, beside the standard output")
    parser.add_argument("--folder", help="where the corpus and the outputs go; needs a few GB")
    parser.add_argument("--keep", action="store_true", help="leave the files there")
    parser.add_argument("beam", nargs="*", help="flags for the command, after --")
    return parser.parse_args()


def run_benchmark(options: argparse.Namespace, folder: Path) -> int:
    corpus = write_corpus(folder / "corpus.parquet", rows=options.rows)
    vocabulary = write_vocabulary(folder / "vocab.txt")
    build_free_expert(folder / "expert", vocab_file=vocabulary, width=options.width)
    build_preprocessor(folder / "preprocessor", vocab_file=vocabulary)
    flags = [
        f"--input={corpus}",
        "--id_field=id",
        f"--rows_per_file={ROWS_PER_FILE}",
        f"--expert={folder / 'expert'}",
        f"--preprocessor={folder / 'preprocessor'}",
        *options.beam,
    ]
    reference = Job(folder / "undisturbed", flags)
    tell(f"{options.rows:,} rows, undisturbed")
    code = reference.start().wait()
    if code:
        tell(f"the undisturbed run ended with exit code {code}")
        return 1
    check_sample(reference.output, corpus=corpus, folder=folder, width=options.width)
    tell(f"committed after {reference.seconds:.1f} s; the sample's vectors are right")
    jobs = kill_jobs(options, folder, flags=flags, duration=reference.seconds)
    outputs = [reference.output, *(job.output for job in jobs)]
    checks = [check_same(output, reference.output, rows=options.rows) for output in outputs]
    figures = summarize(options, reference=reference, jobs=jobs)
    figures["rows_lost"] = sum(lost for lost, _ in checks)
    figures["rows_doubled"] = sum(doubled for _, doubled in checks)
    print(format_table(figures))
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n", encoding="utf-8")
    return 1 if figures["rows_lost"] or figures["rows_doubled"] else 0


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass
class Job:
    """One output, and the runs it took."""

    folder: Path
    flags: list[str]
    kills: int = 0
    seconds: float = 0.0

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def log(self) -> Path:
        return self.folder / "encoded.log"

    def start(self) -> Run:
        self.folder.mkdir(exist_ok=True)
        return Run(self)

    @property
    def is_committed(self) -> bool:
        journal = self.output / "_work" / "commit.json"
        return (self.output / "_SUCCESS").exists() and not journal.exists()


class Run:
    """The real command as a process of its own, its expert's calls counted."""

    def __init__(self, job: Job) -> None:
        setup = Setup(encoded_log=str(job.log))
        program = (
            f"import sys; from tests.fault_hooks import Setup; {setup!r}(); "
            "from pipeline.run import main; sys.exit(main(sys.argv[1:]))"
        )
        self._job = job
        self._says = job.folder / "says.txt"
        self._started = time.monotonic()
        with open(self._says, "ab") as says:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program, f"--output={job.output}", *job.flags],
                cwd=ROOT,
                stdout=says,
                stderr=says,
            )

    def wait(self, *, seconds: float | None = None) -> int | None:
        """Wait for the end, at most so long. Returns the exit code, or None if it is killed."""
        try:
            code: int | None = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._job.kills += 1
            code = None
        self._job.seconds += time.monotonic() - self._started
        if code:
            tell(self._says.read_text(encoding="utf-8", errors="replace")[-2000:])
        return code


def kill_jobs(
    options: argparse.Namespace, folder: Path, *, flags: list[str], duration: float
) -> list[Job]:
    """Kill runs at random moments until all kills are spent; the last job is left to finish."""
    rng = random.Random(options.seed)
    jobs: list[Job] = []
    kills = 0
    while True:
        job = Job(folder / f"killed-{len(jobs)}", flags)
        jobs.append(job)
        while not job.is_committed:
            seconds = rng.uniform(0, duration) if kills < options.kills else None
            code = job.start().wait(seconds=seconds)
            if code is None:
                kills += 1
                tell(f"kill {kills} of {options.kills}, {seconds:.1f} s after the start")
            elif code:
                raise SystemExit(f"a run ended with exit code {code}; wanted 0 or a kill")
        if kills >= options.kills:
            return jobs


def write_corpus(path: Path, *, rows: int) -> Path:
    """Short texts that all differ, as Parquet in row groups."""
    rng = random.Random(7)
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 50_000):
            numbers = range(start, min(rows, start + 50_000))
            texts = [f"{n} {' '.join(rng.choices(WORDS, k=rng.randint(3, 9)))}" for n in numbers]
            ids = [make_id(n) for n in numbers]
            writer.write_table(pa.table({"id": ids, "text": texts}, schema=schema))
    return path


def make_id(number: int) -> str:
    return f"row-{number:09d}"


def write_vocabulary(path: Path) -> Path:
    """Word pieces enough for the corpus."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]
    path.write_text("\n".join(dict.fromkeys(pieces)) + "\n", encoding="utf-8")
    return path


def read_files(output: Path) -> Iterator[pa.Table]:
    manifest = json.loads((output / "manifest.json").read_bytes())
    for file in manifest["files"]:
        yield pq.read_table(output / file["name"], columns=["id", "embedding"])


def vectors_of(table: pa.Table) -> np.ndarray:
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    return flat.reshape(len(table), -1)


def check_same(output: Path, reference: Path, *, rows: int) -> tuple[int, int]:
    """Compare the vectors, to 1e-5, with the undisturbed run's; count rows lost and doubled."""
    seen: set[str] = set()
    count = 0
    for table, wanted in zip(read_files(output), read_files(reference), strict=True):
        assert table["id"].equals(wanted["id"]), f"other ids after row {count:,}"
        np.testing.assert_allclose(vectors_of(table), vectors_of(wanted), rtol=0, atol=1e-5)
        seen.update(table["id"].to_pylist())
        count += len(table)
    return rows - len(seen.intersection(map(make_id, range(rows)))), count - len(seen)


def check_sample(output: Path, *, corpus: Path, folder: Path, width: int) -> None:
    """Some rows' vectors against ones computed here: tables, positions, mean over the tokens."""
    import tensorflow as tf
    import tensorflow_text

    assert tensorflow_text.__version__  # loaded for its ops
    preprocessor = tf.saved_model.load(str(folder / "preprocessor"))
    special = preprocessor.tokenize.get_special_tokens_dict()
    first, last = int(special["start_of_sequence_id"]), int(special["end_of_segment_id"])
    pieces = len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    tables = make_tables(pieces=pieces, width=width)
    texts = pq.read_table(corpus, columns=["text"])["text"]
    start = 0
    for table in read_files(output):
        places = np.linspace(0, len(table) - 1, 100).astype(int)
        chosen = [texts[start + int(place)].as_py() for place in places]
        tokens = preprocessor.tokenize(tf.constant(chosen)).merge_dims(1, 2).to_list()
        found = vectors_of(table)[places]
        for row, ids in zip(found, tokens, strict=True):
            states = states_of(np.array([first, *ids, last], np.int32), tables=tables)
            np.testing.assert_allclose(row, states.mean(axis=0), rtol=0, atol=1e-5)
        start += len(table)


def summarize(options: argparse.Namespace, *, reference: Job, jobs: list[Job]) -> dict[str, Any]:
    needed = len(jobs) * options.rows
    encoded = sum(count_encoded(job.log) for job in jobs)
    seconds = sum(job.seconds for job in jobs)
    kills = sum(job.kills for job in jobs)
    return {
        "rows": options.rows,
        "width": options.width,
        "cores": os.cpu_count(),
        "kills": kills,
        "outputs": len(jobs),
        "undisturbed_seconds": round(reference.seconds, 1),
        "undisturbed_rows_per_second": round(options.rows / reference.seconds),
        "killed_seconds_an_output": round(seconds / len(jobs), 1),
        "seconds_a_kill": round((seconds - len(jobs) * reference.seconds) / max(1, kills), 1),
        "rows_encoded_twice": encoded - needed,
        "rows_encoded_twice_a_kill": round((encoded - needed) / max(1, kills)),
        "share_encoded_twice": round((encoded - needed) / needed, 5),
    }


def format_table(figures: dict[str, Any]) -> str:
    width = max(map(len, figures))
    lines = (f"{name.replace('_', ' '):{width}}  {value:>12,}" for name, value in figures.items())
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
