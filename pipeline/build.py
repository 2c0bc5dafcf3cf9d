"""The pipe chain: from read tasks to a committed output, on one screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam

from transforms.assemble import AssembleFiles, AssembleRejects
from transforms.commit import CheckCounts, CommitOutput
from transforms.committed import CommittedFile
from transforms.encode import EncodeBatches
from transforms.read import ReadCorpus, ReadSettings
from transforms.records import (
    EncodeSettings,
    Expert,
    InputFile,
    ReadTask,
    RowFields,
    RowLimits,
)
from transforms.reuse import JoinEarlier
from transforms.select import CheckCorpus, GateRules, SelectRows, StageFaults
from transforms.spool import SpoolChunks
from transforms.stage import FinishChunks, LimitFailures, LoadChunks, StageParts


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything that a run's pipeline is made of; plain values that travel to workers."""

    output: str
    files: Sequence[InputFile]
    tasks: Sequence[ReadTask]
    fields: RowFields
    limits: RowLimits
    read: ReadSettings
    expert: Expert
    encode: EncodeSettings
    fingerprint: str
    rules: GateRules
    rows_per_file: int = 100_000
    id_buckets: int = 16
    earlier: Sequence[CommittedFile] = ()
    footer: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


def build(root: beam.Pipeline, plan: RunPlan) -> Any:
    """Apply the whole chain; the result is one `RunCounts`, after the commit."""
    output, fields = plan.output, plan.fields
    paths = [file.path for file in plan.files]

    # Index pass: parsed rows go to the spool, hashes of ids find duplicates, the gate decides.
    read = (
        root
        | "Tasks" >> beam.Create(list(plan.tasks))
        | "Read" >> ReadCorpus(fields, limits=plan.limits, settings=plan.read)
    )
    spooled = read.batches | "Spool" >> SpoolChunks(
        output,
        paths={path: index for index, path in enumerate(paths)},
        buckets=plan.id_buckets,
        with_texts=bool(plan.earlier),
    )
    rows = {"chunks": spooled.chunks, "ids": spooled.ids}
    reuse_counts = None
    if plan.earlier:
        earlier = {
            "files": root | "EarlierFiles" >> beam.Create(list(plan.earlier)),
            "new_ids": spooled.ids,
            "new_texts": spooled.texts,
        } | "JoinEarlier" >> JoinEarlier(buckets=plan.id_buckets)
        rows["reuse"], reuse_counts = earlier["refs"], earlier["counts"]
    work = rows | "Select" >> SelectRows(output, fields=fields, paths=paths)
    totals = (
        (work, read.faults)
        | "WorkAndFaults" >> beam.Flatten()
        | "Gate" >> CheckCorpus(output, rules=plan.rules)
    )

    # Encode pass: what is not staged yet is tokenized, encoded and staged.
    loaded = work | "Load" >> LoadChunks(
        output,
        fingerprint=plan.fingerprint,
        after=totals,
        earlier=plan.earlier,
        keep_truncated=plan.encode.long_text != "reject",
    )
    encoded = loaded.texts | "Encode" >> EncodeBatches(
        plan.expert, settings=plan.encode, progress_of=output
    )
    staged = encoded.vectors | "Stage" >> StageParts(output, fingerprint=plan.fingerprint)
    finished = {
        "work": work,
        "parts": (loaded.parts, staged) | "AllParts" >> beam.Flatten(),
        "failures": encoded.failures
        | "LimitFailures"
        >> LimitFailures(output, max_reject_rate=plan.rules.max_reject_rate, totals=totals),
    } | "Finish" >> FinishChunks(output, fields=fields, paths=paths)

    # Assemble pass: balanced files in corpus order, then the commit.
    counted = (
        finished
        | "GatherChunks" >> beam.combiners.ToList()
        | "Count" >> CheckCounts(output, max_reject_rate=plan.rules.max_reject_rate, totals=totals)
    )
    faults = read.faults | "StageFaults" >> StageFaults(output)
    files = counted | "Assemble" >> AssembleFiles(
        output,
        layout=plan.rules.layout,
        rows_per_file=plan.rows_per_file,
        footer=plan.footer,
        totals=totals,
    )
    rejects = counted | "AssembleRejects" >> AssembleRejects(output, faults=faults)
    return (
        (files.files, rejects.files)
        | "AllFiles" >> beam.Flatten()
        | "Commit"
        >> CommitOutput(
            output,
            chunks=counted,
            totals=totals,
            stats=encoded.stats,
            summaries=files.summaries,
            examples=rejects.examples,
            inputs=list(plan.files),
            layout=plan.rules.layout,
            about=plan.about,
            reuse=reuse_counts,
        )
    )
