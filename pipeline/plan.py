"""`python -m pipeline.plan [flags of run]`: what a run would come to, without running it."""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import yaml

from pipeline.commands import CommandParser, count_of, run_command
from pipeline.launch import describe_plan, prepare, say
from pipeline.options import RunSettings, parse_settings
from pipeline.options import make_parser as make_run_parser
from transforms.errors import ConfigError, InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.build import RunPlan
    from transforms.calibrate import Calibration
    from transforms.records import Int32Array
    from transforms.sample import CorpusSample
    from transforms.tokenize import TokenizedTexts

_NO_OUTPUT = "(no --output)"
_CHUNKS = 3
# Beside what this process held: chunks in flight and Beam's buffers. Stated.
_MEMORY_MARGIN_BYTES = 256 << 20


class _PlanParser(CommandParser):
    """Knows plan's own flags, and leaves the others to the parser of `run`."""

    def parse_command(self, argv: Sequence[str]) -> argparse.Namespace:
        if {"-h", "--help"} & set(argv):
            full = make_run_parser()
            full.prog, full.description, full.epilog = self.prog, self.description, self.epilog
            _add_flags(full)
            full.parse_args(["--help"])
        given, rest = self.parse_known_args(list(argv))
        given.rest = rest
        return given


def make_parser() -> CommandParser:
    """The flags of the command, without those of `run`."""
    parser = _PlanParser(
        prog="python -m pipeline.plan",
        description="Predict a run from a sample of the corpus and a calibration of this machine: "
        "rows, tokens,\ntruncation, time, output, and price on named machines. It takes the flags "
        "of run, where\n--output may be left out, and writes nothing.",
        epilog="Exit codes: 0 predicted, 2 a flag, the input or the expert cannot be. The expert "
        "is fetched if it is\nnot in the cache. Beam's own options pass through.",
        allow_abbrev=False,
        add_help=False,
    )
    _add_flags(parser)
    return parser


def _add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Plan")
    group.add_argument(
        "--sample_rows", metavar="N", type=count_of(1), default=2000,
        help="rows to read, spread over the corpus\ndefault: 2000",
    )  # fmt: skip
    group.add_argument(
        "--calibration_seconds", metavar="N", type=count_of(1), default=8,
        help="about how long to encode batches to measure this machine\ndefault: 8",
    )  # fmt: skip
    group.add_argument(
        "--prices", metavar="FILE", help="YAML with other prices, as in configs/machines.yaml"
    )
    group.add_argument(
        "--rates", metavar="FILE",
        help="YAML with other rates or machines, as in configs/machines.yaml",
    )  # fmt: skip
    group.add_argument("--json", action="store_true", help="print JSON (default: a table)")


def plan(flags: argparse.Namespace) -> int:
    """Predict, print, and return the exit code. Raises: UserError."""
    from pipeline.forecast import load_machines

    import pipeline.build  # noqa: F401  isort: skip (imports that a run makes before its clock)

    arguments = list(flags.rest)
    if not any(argument.split("=")[0] == "--output" for argument in arguments):
        arguments.append(f"--output={_NO_OUTPUT}")
    settings, beam_args = parse_settings(arguments)
    tables = load_machines(_read_tables(flags))
    start_seconds = seconds_since_start()
    started = time.monotonic()
    run_plan, _ = prepare(settings, beam_args)
    prepare_seconds = time.monotonic() - started
    say(f"planning: {describe_plan(run_plan, settings)}")
    found = predict(
        run_plan,
        settings,
        tables=tables,
        sample_rows=flags.sample_rows,
        calibration_seconds=flags.calibration_seconds,
        start_seconds=start_seconds,
        prepare_seconds=prepare_seconds,
    )
    if flags.json:
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode())
    else:
        print(format_table(found))
    return 0


def _read_tables(flags: argparse.Namespace) -> list[tuple[str, Any]]:
    from pipeline._bundled import find_bundled
    from transforms import storage

    tables = []
    given = [("--prices", flags.prices), ("--rates", flags.rates)]
    for flag, path in [("", str(find_bundled("machines.yaml"))), *given]:
        if path is None:
            continue
        try:
            tables.append((path, yaml.safe_load(storage.get_bytes(path))))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{flag}={path}: cannot be read: {error}") from error
    return tables


def seconds_since_start() -> float:
    """How old this process is: what the interpreter and imports took."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        with open("/proc/uptime", encoding="ascii") as file:
            return float(file.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.process_time()  # it was hardly idle


@dataclass(frozen=True, slots=True)
class _Rows:
    """The sample's rows as columns, and what hashing and spooling them took."""

    table: pa.Table
    groups: Int32Array
    text_bytes: int
    rejects: dict[str, int]
    duplicate_ids: int
    duplicate_texts: int
    spool_seconds: float


def gather_rows(sample: CorpusSample, *, pair: bool) -> _Rows:
    """Put a sample together, and count what repeats."""
    import pyarrow as pa

    from transforms import spool

    tables, groups = [], []
    ids: set[str] = set()
    texts: set[bytes] = set()
    rejects: dict[str, int] = {}
    duplicate_ids = duplicate_texts = text_bytes = 0
    spool_seconds = 0.0
    for number, batch in zip(sample.place_of, sample.batches, strict=True):
        for reject in batch.rejects:
            rejects[reject.reason] = rejects.get(reject.reason, 0) + 1
        started = time.monotonic()
        hashes = spool.hash_texts(batch.texts, batch.pairs)
        spool.hash_ids(batch.ids)
        spool.write_table(spool.spool_table(batch, hashes))
        spool_seconds += time.monotonic() - started
        keep = []
        for row, (name, digest) in enumerate(zip(batch.ids.to_pylist(), hashes, strict=True)):
            if name in ids:
                duplicate_ids += 1
                continue
            duplicate_texts += digest in texts
            ids.add(name)
            texts.add(digest)
            keep.append(row)
        columns = {"id": batch.ids, "text": batch.texts}
        if pair:
            columns["pair"] = batch.pairs
        text_bytes += sum(column.nbytes for column in columns.values())
        columns["text_sha256"] = pa.array([digest.hex() for digest in hashes], pa.string())
        for name in batch.metadata.column_names:
            columns[f"m:{name}"] = batch.metadata[name]
        tables.append(pa.table(columns).take(pa.array(keep, pa.int32())))
        groups += [number] * len(keep)
    return _Rows(
        table=pa.concat_tables(tables, promote_options="permissive"),
        groups=np.array(groups, np.int32),
        text_bytes=text_bytes,
        rejects=rejects,
        duplicate_ids=duplicate_ids,
        duplicate_texts=duplicate_texts,
        spool_seconds=spool_seconds,
    )


def predict(
    plan: RunPlan,
    settings: RunSettings,
    *,
    tables: dict[str, Any],
    sample_rows: int,
    calibration_seconds: float,
    start_seconds: float,
    prepare_seconds: float,
) -> dict[str, Any]:
    """Sample, calibrate, and scale up; the result is what `--json` prints. Raises: UserError."""
    from pipeline import forecast
    from transforms.calibrate import Shape, calibrate, plan_chunk
    from transforms.engines import get_engine
    from transforms.runtime import measure_memory
    from transforms.sample import sample_corpus
    from transforms.tokenize import get_tokenizer, reject_truncated

    sample = sample_corpus(
        plan.files, sample_rows=sample_rows, fields=plan.fields, limits=plan.limits,
        settings=plan.read, limit=settings.limit,
    )  # fmt: skip
    if not sample.rows_read:
        raise InputError(f"--input: {len(plan.files)} file(s), but no row in them; nothing to plan")
    rows = gather_rows(sample, pair=plan.fields.pair is not None)
    texts = rows.table["text"].combine_chunks()
    pairs = rows.table["pair"].combine_chunks() if plan.fields.pair else None
    tokenizer = get_tokenizer(plan.expert)
    limit = plan.expert.position_limit
    # The first call builds the tokenizer, which no run does a second time.
    tokenizer.tokenize(texts[:1], pairs=None if pairs is None else pairs[:1], max_tokens=limit)
    started = time.monotonic()
    whole = tokenizer.tokenize(texts, pairs=pairs, max_tokens=limit)
    tokenize_seconds = time.monotonic() - started
    used = tokenizer.tokenize(texts, pairs=pairs, max_tokens=plan.encode.max_tokens)
    if plan.encode.long_text == "reject":
        used = reject_truncated(used, max_tokens=plan.encode.max_tokens)
    rejects = dict(rows.rejects)
    for reason in [failure.reason for failure in used.failures]:
        rejects[reason] = rejects.get(reason, 0) + 1
    if rows.duplicate_ids:
        rejects["duplicate_id"] = rows.duplicate_ids
    share = len(used.tokens) / sample.rows_read if sample.rows_read else 0.0
    encoded_rows = sample.rows * share
    lengths = np.diff(used.tokens.offsets).astype(np.int32)
    counts = forecast.count_tokens(
        np.diff(whole.tokens.offsets).astype(np.int32), whole.tokens.truncated,
        groups=rows.groups[whole.rows], max_tokens=plan.encode.max_tokens,
        position_limit=limit, rows=encoded_rows,
        sizes=sample.place_bytes, whole=sample.total_bytes,
    )  # fmt: skip
    chunk_rows = forecast.size_chunk(
        rows=encoded_rows, tasks=len(plan.tasks),
        row_bytes=rows.text_bytes / max(1, rows.table.num_rows),
        max_rows=plan.limits.chunk_rows, max_bytes=plan.limits.chunk_bytes,
    )  # fmt: skip
    chunks = [
        plan_chunk(lengths, rows=chunk_rows, batch_tokens=plan.encode.batch_tokens, seed=seed)
        for seed in range(1 if chunk_rows == len(lengths) else _CHUNKS)
        if len(lengths)
    ]
    batches = [batch for chunk in chunks for batch in chunk]
    shapes = [Shape(len(batch), batch.length) for batch in batches]
    tokens_in_shapes = int(sum(lengths[batch.rows].sum() for batch in batches))
    if not batches:
        raise InputError(
            f"--sample_rows={sample_rows}: none of the {sample.rows_read} rows read can be "
            f"encoded ({_describe_rejects(rejects)}); look at --text_field"
        )
    engine, _ = get_engine(plan.expert, settings=plan.encode)
    calibration = calibrate(
        engine, tokens=used.tokens, batches=chunks[0], budget_seconds=calibration_seconds
    )
    file_bytes, write_seconds = measure_output(
        plan, settings, rows=rows, used=used, calibration=calibration
    )
    per_row = 1 / max(1, sample.rows_read)
    encoding = forecast.encode_seconds(
        shapes, model=calibration.model, tokens_in_shapes=tokens_in_shapes,
        tokens=counts.total.value,
    )  # fmt: skip
    reading = (sample.read_seconds + rows.spool_seconds) * per_row * sample.rows
    tokenizing = tokenize_seconds / max(1, rows.table.num_rows) * encoded_rows
    runner = forecast.pass_seconds(start_seconds)
    stages = {
        "start": start_seconds,
        "prepare": prepare_seconds,
        "index": runner["index"] + reading,
        "encode": runner["encode"] + engine.load_seconds + tokenizing
        + calibration.first_call_seconds + encoding,
        "assemble": runner["assemble"] + write_seconds * encoded_rows,
    }  # fmt: skip
    output_bytes = file_bytes * encoded_rows
    work_bytes = encoded_rows * plan.expert.width * 4 + sample.rows * (
        rows.text_bytes / max(1, rows.table.num_rows)
    )
    memory = measure_memory()
    padded = sum(shape.padded_tokens for shape in shapes)
    return {
        "expert": plan.expert.handle,
        "sample": {
            "rows": sample.rows_read,
            "basis": sample.basis,
            "rejects": rejects,
            "reject_share": round(1 - share, 6),
            "duplicate_text_share": round(rows.duplicate_texts * per_row, 6),
            "duplicate_id_share": round(rows.duplicate_ids * per_row, 6),
            "files_faulty": len(sample.faults),
        },
        "rows": {"value": sample.rows, "standard_error": sample.rows_error},
        "rows_encoded": round(encoded_rows),
        "tokens": {
            "value": round(counts.total.value),
            "standard_error": counts.total.error,
            "mean": round(counts.mean, 2),
            "longest_in_sample": counts.longest,
            "max_tokens": plan.encode.max_tokens,
            "share_cut_at": {str(k): round(v, 6) for k, v in counts.cut_at.items()},
            "padded": round(counts.total.value * padded / tokens_in_shapes),
            "padding_ratio": round(padded / tokens_in_shapes, 4),
        },
        "calibration": _describe_calibration(calibration, load_seconds=engine.load_seconds),
        "seconds": {
            **{name: round(value, 2) for name, value in stages.items()},
            "total": round(sum(stages.values()), 2),
            "stated": {name: round(value, 2) for name, value in runner.items()},
        },
        "output": {
            "format": settings.output_format,
            "bytes_per_row": round(file_bytes, 1),
            "bytes": round(output_bytes),
            "files": max(1, math.ceil(round(encoded_rows) / settings.rows_per_file)),
        },
        "needs": {
            "output": None if settings.output == _NO_OUTPUT else settings.output,
            "disk_bytes": round(output_bytes + work_bytes),
            "memory_bytes": memory.processes[0][1] + _MEMORY_MARGIN_BYTES,
        },
        "machines": forecast.forecast_machines(
            tables, shapes=shapes, tokens=counts.total.value, tokens_in_shapes=tokens_in_shapes,
            layers=plan.expert.layers, width=plan.expert.width,
        ),
        "machines_source": {
            part: {key: str(tables[part].get(key, "not said")) for key in ("date", "source")}
            for part in ("prices", "rates")
        } | {"currency": str(tables["prices"].get("currency", "USD"))},
        "notes": _note(settings, sample, calibration, share=share),
    }  # fmt: skip


def _describe_calibration(calibration: Calibration, *, load_seconds: float) -> dict[str, Any]:
    return {
        "tokens_per_second": round(calibration.tokens_per_second, 1),
        "calls": [
            {"rows": shape.rows, "length": shape.length, "seconds": round(spent, 4)}
            for shape, spent in calibration.calls
        ],
        "fit_error": round(calibration.relative_error, 4),
        "load_seconds": round(load_seconds, 2),
        "smaller_batches": calibration.is_reduced,
    }


def _note(
    settings: RunSettings, sample: CorpusSample, calibration: Calibration, *, share: float
) -> list[str]:
    notes = []
    if sample.rows_error != 0:
        notes.append("duplicates are those within the sample; the corpus may have more")
    if sample.faults:
        notes.append(f"{len(sample.faults)} file(s) cannot be read to their end: a run says which")
    if 1 - share > settings.max_reject_rate:
        notes.append(
            f"{1 - share:.1%} of the sample would be rejects, over "
            f"--max_reject_rate={settings.max_reject_rate}: a run would end with exit code 4"
        )
    if settings.reuse_from:
        notes.append("rows that --reuse_from would take over are counted as encoded")
    if calibration.is_reduced:
        notes.append("calibrated with smaller batches than the run's (--calibration_seconds)")
    return notes


def measure_output(
    plan: RunPlan,
    settings: RunSettings,
    *,
    rows: _Rows,
    used: TokenizedTexts,
    calibration: Calibration,
) -> tuple[float, float]:
    """Write the calibration's vectors to memory as the run would, and weigh and time it.

    Returns: bytes and seconds a row.
    """
    import pyarrow as pa

    from transforms.writers import find_writer, output_schema, vector_array

    picked, first = np.unique(calibration.rows, return_index=True)
    source = rows.table.take(pa.array(used.rows[picked]))
    metadata = [name for name in source.column_names if name.startswith("m:")]
    columns: dict[str, Any] = {
        "id": source["id"],
        "embedding": vector_array(calibration.vectors[first]),
        "n_tokens": pa.array(np.diff(used.tokens.offsets)[picked].astype(np.int32)),
        "truncated": pa.array(used.tokens.truncated[picked]),
        "text_sha256": source["text_sha256"],
        **{name: source[name] for name in source.column_names if name in ("text", "pair")},
        **{name[2:]: source[name] for name in metadata},
    }
    schema = output_schema(
        embedding_columns={"embedding": plan.expert.width},
        metadata=pa.schema([(name[2:], source[name].type) for name in metadata]),
        keep_text=settings.keep_text,
        pair=plan.fields.pair is not None and settings.keep_text,
    )
    table = pa.table({name: columns[name] for name in schema.names}).cast(schema)

    def weigh(part: pa.Table) -> int:
        sink = io.BytesIO()
        writer = find_writer(settings.output_format)
        with writer.open(sink, schema=schema, footer={}) as out:
            out.write(part)
        return sink.tell()

    started = time.monotonic()
    whole = weigh(table)
    seconds = (time.monotonic() - started) / len(picked)
    if len(picked) < 20:
        return whole / len(picked), seconds
    half = len(picked) // 2  # what stands once a file falls out of the difference
    return (whole - weigh(table.slice(0, half))) / (len(picked) - half), seconds


def _describe_rejects(rejects: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in rejects.items()) or "none"


def format_table(found: dict[str, Any]) -> str:
    """The prediction as text."""
    from pipeline.forecast import Estimate

    sample, tokens, seconds, out = (found[k] for k in ("sample", "tokens", "seconds", "output"))
    rows = Estimate(found["rows"]["value"], found["rows"]["standard_error"])
    total = Estimate(tokens["value"], tokens["standard_error"])
    cut = ", ".join(f"{limit}: {part:.1%}" for limit, part in tokens["share_cut_at"].items())
    calibration, stated = found["calibration"], seconds["stated"]
    passes = ", ".join(
        f"{name} {seconds[name]:,.1f}"
        for name in ("start", "prepare", "index", "encode", "assemble")
    )
    lines = [
        ("rows", f"{rows.describe()}; {sample['basis']}; sample {sample['rows']:,}"),
        ("rejects", (f"{sample['reject_share']:.2%} of the sample "
         f"({_describe_rejects(sample['rejects'])})")),
        ("duplicates", (f"texts {sample['duplicate_text_share']:.2%}, ids "
         f"{sample['duplicate_id_share']:.2%} of the sample")),
        ("tokens", (f"{total.describe()}, {tokens['mean']:,.1f} a row, longest in the sample "
         f"{tokens['longest_in_sample']}; limit {tokens['max_tokens']}")),
        ("cut at", f"{cut} of the texts"),
        ("padding", f"{tokens['padding_ratio'] - 1:.1%} more than the real tokens"),
        ("this machine", f"{_format_seconds(seconds['total'])}: {passes} s"),
        ("", (f"measured at {calibration['tokens_per_second']:,.0f} tokens/s in "
         f"{len(calibration['calls'])} batches (fit ± {calibration['fit_error']:.0%}); stated: "
         f"{sum(stated.values()):.2f} s for the runner's passes")),
        ("output", (f"{_format_bytes(out['bytes'])} in {out['files']} {out['format']} file(s), "
         f"{out['bytes_per_row']:,.0f} bytes a row")),
        ("needs", (f"{_format_bytes(found['needs']['disk_bytes'])} of disk while it runs, "
         f"{_format_bytes(found['needs']['memory_bytes'])} of memory")),
    ]  # fmt: skip
    text = [f"{name.ljust(13)} {value}" for name, value in lines]
    text += [f"note          {note}" for note in found["notes"]]
    source, currency = found["machines_source"], found["machines_source"]["currency"]
    text += ["", "On other machines, one worker. STATED rates, not measured here:"]
    width = max([len(row["machine"]) for row in found["machines"]], default=7)
    text.append(
        f"{'machine'.ljust(width)}  {'tokens/s*':>10}  {'time':>10}  {currency + '/h':>8}  "
        f"{currency:>10}"
    )
    text += [
        f"{row['machine'].ljust(width)}  {row['tokens_per_second_stated']:>10,.0f}  "
        f"{_format_seconds(row['hours'] * 3600):>10}  {row['price_per_hour']:>8.3f}  "
        f"{row['price']:>10,.2f}"
        for row in found["machines"]
    ]
    text += [
        (
            "* of BERT-base at 128 tokens; times are scaled by this expert's arithmetic, with the "
            "workers' start"
        ),
        f"rates of {source['rates']['date']}: {source['rates']['source']}",
        f"prices of {source['prices']['date']}: {source['prices']['source']}",
    ]
    return "\n".join(text)


def _format_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _format_bytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def main(argv: Sequence[str] | None = None) -> int:
    """Plan a run; returns the exit code."""
    return run_command(argv, parser=make_parser(), command=plan)


if __name__ == "__main__":
    sys.exit(main())
