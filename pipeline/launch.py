"""From flags to a finished run: check everything first, then build, run and say what happened."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import re
import shlex
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.options import RunSettings, describe, parse_settings
from pipeline.progress import CONSOLE, Progress
from pipeline.progress import say as say  # the other commands take it from here
from transforms import storage
from transforms.errors import ConfigError, InputError, OutputConflictError, UserError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

    from pipeline.build import RunPlan
    from transforms.committed import CommittedFile
    from transforms.records import EncodeSettings, Expert

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
# So long may a run that lost a worker process take to end with an error of its own.
_WORKER_GRACE_SECONDS = 3.0

_HIDDEN = "***"
_SECRET = re.compile(r"secret|password|session_token|access_key|credential|api_key", re.IGNORECASE)
_ADDRESS_PASSWORD = re.compile(r"(://[^/@:\s]+:)[^/@\s]+@")


def run_command(argv: Sequence[str]) -> int:
    """What `python -m pipeline.run` does. Returns the exit code."""
    verbose = any(argument.split("=")[0] == "--verbose" for argument in argv)
    quiet_libraries(verbose=verbose)
    try:
        settings, beam_args = parse_settings(argv)
        run(settings, beam_args, command=format_command(argv))
    except UserError as error:
        if verbose:
            traceback.print_exc()
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted; what is encoded so far is kept. Run the same command to go on")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_INTERRUPTED)  # a runner's threads would hold the process up
    except Exception as error:  # noqa: BLE001 - the last resort: a message, not a stack trace
        if verbose:
            traceback.print_exc()
        say(f"error: {summarize_exception(error)}")
        say("What is encoded so far is kept: run the same command to go on. --verbose shows more")
        return EXIT_FAILED
    return 0


def summarize_exception(error: BaseException) -> str:
    """The last line of what went wrong, without what the runner wraps around it."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    plain = [line for line in lines if not line.startswith(("File ", "Traceback", "^"))]
    last = plain[-1] if plain else type(error).__name__
    last = re.sub(r" \[while running '.*", "", last)
    return re.sub(r"^(\w+\.)+(\w+): ", "", last)[:1000]


def quiet_libraries(*, verbose: bool) -> None:
    """Silence the start-up noise of TensorFlow, Beam and gRPC; worker processes inherit it."""
    if verbose:
        logging.basicConfig(level=logging.INFO)
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("ABSL_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    logging.basicConfig(level=logging.ERROR)
    for name in ("apache_beam", "tensorflow", "absl", "root"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger().setLevel(logging.CRITICAL)


def run(settings: RunSettings, beam_args: Sequence[str], *, command: str = "") -> None:
    """Do one run, from checks to commit. Raises: UserError for everything a user can mend."""
    from transforms import failure, lock, progress
    from transforms.commit import WORK_FOLDER, OutputState, inspect_output, roll_forward

    started, started_at = time.monotonic(), time.time()
    output = settings.output.rstrip("/") or settings.output
    check_output(settings, output)
    with interruptible():
        plan, options = prepare(settings, beam_args)
        identity = work_identity(describe(settings), handle=plan.expert.handle)
        with lock.hold(output):
            check_output(settings, output)
            state = inspect_output(output)
            if state is OutputState.COMMITTING:
                say(f"{output}: an earlier run was stopped in its commit; finishing it")
                roll_forward(output)
                if not settings.overwrite and read_identity(output) == identity:
                    say(describe_result(output, seconds=time.monotonic() - started))
                    return
                check_output(settings, output)
            earlier = lock.read_run(output)
            if earlier is not None and earlier.get("identity") != identity:
                if not settings.overwrite:
                    raise OutputConflictError(
                        f"--output={output}: holds an interrupted run of other work (started "
                        f"{earlier.get('start', '?')}). Finish it with its own flags, write to "
                        "another folder, or discard it with --overwrite"
                    )
                clear_work(output)
            elif earlier is not None:
                say(f"resuming the run of {earlier.get('start', '?')} in {output}")
            record = lock.describe_self(identity)
            storage.put_bytes(storage.join(output, lock.RUN_FILE), orjson.dumps(record))
            failure.clear(output)
            progress.clear(output)
            about = {
                **plan.about,
                "run_id": record["run_id"],
                "created": record["start"],
                "times": (started_at, time.time()),
                "run": describe_run(options, command=command),
            }
            plan = replace(plan, about=about)
            say(describe_plan(plan, settings))
            with Progress(output, live=not settings.verbose):
                execute(plan, options, output)
            if storage.exists(storage.join(output, WORK_FOLDER)):
                storage.delete_folder(storage.join(output, WORK_FOLDER))
    say(describe_result(output, seconds=time.monotonic() - started))


def clear_work(output: str) -> None:
    """Discard an interrupted run's files, but not the lock that we hold."""
    from transforms.lock import LOCK_FILE

    work = storage.join(output, "_work")
    storage.delete_files(
        [
            storage.join(work, name)
            for name in storage.list_files(work)
            if name != os.path.basename(LOCK_FILE)
        ]
    )


def check_output(settings: RunSettings, output: str) -> None:
    """Refuse an output that must not be written, before anything costs time.

    Raises: OutputConflictError, ConfigError.
    """
    from transforms.commit import OutputState, inspect_output

    if storage.is_local(output) and os.path.exists(output) and not os.path.isdir(output):
        raise ConfigError(f"--output={output}: is a file; wanted a directory")
    try:
        state = inspect_output(output)
    except OSError as error:
        raise ConfigError(f"--output={output}: cannot be read: {error}") from error
    if state is OutputState.COMMITTED and not settings.overwrite:
        raise OutputConflictError(
            f"--output={output}: holds a committed output, which is never changed. Write to "
            "another directory, or replace it with --overwrite"
        )
    if state is OutputState.FOREIGN:
        raise OutputConflictError(
            f"--output={output}: is not empty and holds no output of ours; nothing in it was "
            "touched. Choose an empty or new directory"
        )


def prepare(settings: RunSettings, beam_args: Sequence[str]) -> tuple[RunPlan, PipelineOptions]:
    """Check input and expert and make the plan. Raises: UserError."""
    from apache_beam.options.pipeline_options import (
        PipelineOptions,
        SetupOptions,
        WorkerOptions,
    )

    from pipeline import __version__
    from pipeline.build import RunPlan
    from pipeline.resolve import resolve
    from transforms.engines import set_threads
    from transforms.quiet import load_tensorflow
    from transforms.read import ReadSettings, check_inputs, expand_inputs, limit_tasks, plan_tasks
    from transforms.records import RowLimits
    from transforms.select import GateRules, OutputLayout
    from transforms.writers import reserved_columns

    options = PipelineOptions(list(beam_args))
    options.view_as(SetupOptions).save_main_session = False
    workers = options.view_as(WorkerOptions)
    if not settings.verbose and workers.default_sdk_harness_log_level is None:
        workers.default_sdk_harness_log_level = "ERROR"
    fields = settings.row_fields()
    limits = RowLimits(max_row_bytes=settings.max_row_bytes)
    delimiter = settings.csv_delimiter.replace("\\t", "\t") or None
    read = ReadSettings(csv_delimiter=delimiter)
    columns = {"embedding": 0}
    taken = reserved_columns(
        embedding_columns=columns, keep_text=settings.keep_text, pair=fields.pair is not None
    )
    for one in fields.metadata:
        if one.name.casefold() in taken:
            raise ConfigError(
                f"--metadata_fields: {one.name!r} is the name of a column of the output; leave "
                "it out or rename it in the source"
            )
    files = expand_inputs(settings.input, input_format=settings.input_format)
    summary = check_inputs(
        files, fields=fields, settings=read, allow_bad_files=settings.on_bad_file == "reject"
    )
    if summary.may_be_empty and not settings.allow_empty:
        raise InputError(
            f"--input: {len(files)} file(s), but no row in them; commit an empty output with "
            "--allow_empty"
        )
    load_tensorflow()
    set_threads(settings.threads)
    expert = resolve(
        settings.expert,
        preprocessor=settings.preprocessor or None,
        hub_address=settings.hub_address or None,
        progress=say,
    )
    encode = encode_settings(settings, expert)
    fingerprint, parts = fingerprint_run(expert, encode)
    tasks = plan_tasks(files)
    if settings.limit:
        tasks = limit_tasks(tasks, settings.limit, fields=fields, settings=read)
    earlier, reused = find_earlier(settings, fingerprint)
    about = {
        "expert": {
            "name": expert.name,
            "handle": expert.handle,
            "preprocessor": expert.preprocessor_handle,
            "width": expert.width,
        },
        "fingerprint": fingerprint,
        "fingerprint_parts": parts,
        "config": describe(settings),
        "beam_arguments": hide_secrets(beam_args),
        "version": __version__,
        "reused": reused,
    }
    return (
        RunPlan(
            output=settings.output.rstrip("/") or settings.output,
            files=files,
            tasks=tasks,
            fields=fields,
            limits=limits,
            read=read,
            expert=expert,
            encode=encode,
            fingerprint=fingerprint,
            rules=GateRules(
                max_reject_rate=settings.max_reject_rate,
                on_duplicate_id=settings.on_duplicate_id,
                on_bad_file=settings.on_bad_file,
                allow_empty=settings.allow_empty,
                layout=OutputLayout(
                    output_format=settings.output_format,
                    embeddings=(("embedding", expert.width),),
                    keep_text=settings.keep_text,
                    pair=fields.pair is not None,
                ),
            ),
            rows_per_file=settings.rows_per_file,
            earlier=earlier,
            id_buckets=choose_buckets(sum(file.size_bytes for file in files)),
            footer=make_footer(expert, fingerprint=fingerprint, parts=parts),
            about=about,
        ),
        options,
    )


def encode_settings(settings: RunSettings, expert: Expert) -> EncodeSettings:
    """How this run encodes. Raises: ConfigError if max_tokens is over the expert's limit."""
    from transforms.records import EncodeSettings

    if settings.max_tokens > expert.position_limit:
        raise ConfigError(
            f"--max_tokens={settings.max_tokens} is over {expert.name}'s limit of "
            f"{expert.position_limit}; lower it or leave it out"
        )
    return EncodeSettings(
        pooling=settings.pooling,
        normalize=settings.normalize,
        max_tokens=settings.max_tokens or expert.position_limit,
        long_text=settings.long_text,
        engine="tensorflow" if settings.engine == "auto" else settings.engine,
        precision="float32" if settings.precision == "auto" else settings.precision,
        batch_tokens=settings.batch_tokens,
        threads=settings.threads,
    )


def find_earlier(
    settings: RunSettings, fingerprint: str
) -> tuple[list[CommittedFile], dict[str, Any] | None]:
    """The files to take vectors over from, and what the manifest says of them.

    Raises: ConfigError, InputError.
    """
    from transforms.committed import find_committed, list_committed
    from transforms.manifest import read_manifest

    if not settings.reuse_from:
        return [], None
    folder = find_committed(settings.reuse_from, besides=settings.output)
    if folder is None:
        say(f"--reuse_from={settings.reuse_from}: no committed output yet; encoding every row")
        return [], None
    manifest = read_manifest(folder)
    if manifest["fingerprint"]["digest"] != fingerprint:
        say(
            f"--reuse_from: {folder} was made with another expert or other settings; encoding "
            "every row"
        )
        return [], None
    say(f"reusing unchanged rows of {folder} ({manifest['totals']['rows']:,} rows)")
    return list_committed(folder, manifest), {
        "output": folder,
        "created": manifest["created"],
        "rows": manifest["totals"]["rows"],
    }


def choose_buckets(size_bytes: int) -> int:
    """How many buckets the join of ids is parted into: a power of two, some 50 MB of text each.

    It depends on the corpus alone and bounds what one worker holds of the join.
    """
    return 1 << min(16, max(4, (size_bytes // 50_000_000).bit_length()))


def fingerprint_run(expert: Expert, encode: EncodeSettings) -> tuple[str, dict[str, Any]]:
    """The sha256 over everything that determines a text's vector, and what went into it."""
    parts: dict[str, Any] = {
        "encoder": expert.fingerprint,
        "tokenizer": expert.tokenizer_fingerprint,
    }
    parts.update((name, getattr(encode, name)) for name in encode.fingerprint_fields)
    data = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(data).hexdigest(), parts


def make_footer(expert: Expert, *, fingerprint: str, parts: dict[str, Any]) -> dict[str, str]:
    """What each output file says of its vectors."""
    from pipeline import __version__

    return {
        "expert": expert.handle,
        "preprocessor": expert.preprocessor_handle,
        "width": str(expert.width),
        "fingerprint": fingerprint,
        "fingerprint_parts": orjson.dumps(parts).decode(),
        "version": __version__,
    }


def work_identity(config: Mapping[str, Any], *, handle: str) -> str:
    """What makes two runs the same work: input, expert and what the output holds.

    The corpus may have changed in between, and workers, batches and files may be others.

    Args:
      config: every setting by name, as `describe` and a manifest have it.
      handle: the expert's.
    """
    other = {
        "output", "overwrite", "rows_per_file", "batch_tokens", "threads", "verbose", "engine",
        "max_reject_rate", "on_bad_file", "reuse_from", "on_duplicate_id", "allow_empty",
        "hub_address",
    }  # fmt: skip
    parts = {name: value for name, value in config.items() if name not in other}
    parts["expert"] = handle
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def read_identity(output: str) -> str:
    """The identity of the work that a committed output holds."""
    manifest = orjson.loads(storage.get_bytes(storage.join(output, "manifest.json")))
    return work_identity(manifest["config"], handle=manifest["expert"]["handle"])


def execute(plan: RunPlan, options: PipelineOptions, output: str) -> None:
    """Build and run the pipeline. Raises: UserError with the reason that a worker wrote down."""
    import apache_beam as beam

    from pipeline.build import build
    from transforms import failure

    pipeline = beam.Pipeline(runner=choose_runner(options), options=options)
    build(pipeline, plan)
    try:
        with watch_workers():
            state = pipeline.run().wait_until_finish()
    except Exception as error:
        reason = failure.read(output)
        if reason is not None:
            raise reason from error
        # Also a UserError: work had begun, so this is not the exit code of a bad flag.
        raise RuntimeError(summarize_exception(error)) from error
    if state not in ("DONE", None):
        reason = failure.read(output)
        raise reason if reason is not None else UserError(f"the runner ended in state {state}")


def choose_runner(options: PipelineOptions) -> Any:
    """DirectRunner means Beam's in-process runner; any other runner is Beam's to find.

    Beam's own DirectRunner first tries to download a Go binary (Prism) and falls back when it
    cannot, after a while and with other behaviour; `--runner=PrismRunner` asks for that one.
    """
    from apache_beam.options.pipeline_options import StandardOptions
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    from apache_beam.runners.portability.portable_runner import JobServiceHandle

    from pipeline.local_runner import LocalRunner

    name = options.view_as(StandardOptions).runner
    if name not in (None, "DirectRunner", "direct"):
        return name
    # As apache_beam.runners.direct.SwitchingDirectRunner makes it.
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return LocalRunner(provision_info=fn_runner.ExtendedProvisionInfo(provision))


@contextlib.contextmanager
def watch_workers() -> Iterator[None]:
    """End the run if one of its worker processes dies, which Beam would wait for without end.

    Beam's in-process runner starts a worker process from a thread of its own. When the process
    fails, that thread raises, but nobody tells the thread that waits for the worker's answer.
    """
    over = threading.Event()
    before = threading.excepthook

    def notice(arguments: threading.ExceptHookArgs) -> None:
        if arguments.thread is None or arguments.thread.name != "run_worker":
            before(arguments)
            return
        if over.wait(_WORKER_GRACE_SECONDS):
            return  # the run has ended by itself, and says why
        CONSOLE.end()
        say(
            f"error: a worker process died ({arguments.exc_value}); if it was killed for want of "
            "memory, use fewer workers or a lower --batch_tokens"
        )
        say("What is encoded so far is kept: run the same command to go on")
        os._exit(EXIT_FAILED)  # the runner's threads would hold the process up

    threading.excepthook = notice
    try:
        yield
    finally:
        over.set()
        threading.excepthook = before


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """End at once on Ctrl-C or SIGTERM: all that is worth keeping is on disk already."""

    def stop(signum: int, frame: object) -> None:
        CONSOLE.end()
        say(
            "interrupted: what is encoded so far is kept; run the same command to go on "
            f"(exit {EXIT_INTERRUPTED})"
        )
        os._exit(EXIT_INTERRUPTED)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def format_command(argv: Sequence[str]) -> str:
    """The command as a shell takes it, without its secrets."""
    return shlex.join(["python", "-m", "pipeline.run", *hide_secrets(argv)])


def hide_secrets(argv: Sequence[str]) -> list[str]:
    """Arguments as they may stand in a report: keys and passwords of Beam's options hidden."""
    shown: list[str] = []
    hide_next = False
    for argument in argv:
        flag, equals, _ = argument.partition("=")
        is_secret = flag.startswith("--") and _SECRET.search(flag) is not None
        if hide_next and not argument.startswith("--"):
            shown.append(_HIDDEN)
        elif is_secret and equals:
            shown.append(f"{flag}={_HIDDEN}")
        else:
            shown.append(_ADDRESS_PASSWORD.sub(rf"\1{_HIDDEN}@", argument))
        hide_next = is_secret and not equals
    return shown


def describe_run(options: PipelineOptions, *, command: str) -> dict[str, Any]:
    """What the report says of the run besides its work: command, runner, machine."""
    from apache_beam.options.pipeline_options import DirectOptions, StandardOptions

    name = options.view_as(StandardOptions).runner or "DirectRunner"
    described = {"command": command or None, "runner": name}
    if name in ("DirectRunner", "direct"):
        direct = options.view_as(DirectOptions)
        described["runner"] = "DirectRunner (Beam's in-process Python runner)"
        described["workers"] = f"{direct.direct_num_workers}, {direct.direct_running_mode}"
    return {
        **described,
        "host": socket.gethostname(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }


def describe_plan(plan: RunPlan, settings: RunSettings) -> str:
    """What will happen, in a line."""
    size_bytes = sum(file.size_bytes for file in plan.files)
    limit = f", first {settings.limit:,} rows" if settings.limit else ""
    return (
        f"{len(plan.files):,} file(s), {size_bytes / 1e6:,.1f} MB{limit} -> {plan.output} "
        f"({settings.output_format}); expert {plan.expert.handle}, {plan.expert.width} wide, "
        f"{plan.encode.pooling} pooling, {plan.encode.max_tokens} tokens at most, "
        f"{plan.encode.engine} {plan.encode.precision}"
    )


def describe_result(output: str, *, seconds: float) -> str:
    """What happened, from the committed manifest."""
    from transforms.report import REPORT_PAGE

    manifest = orjson.loads(storage.get_bytes(storage.join(output, "manifest.json")))
    report = orjson.loads(storage.get_bytes(storage.join(output, "report.json")))
    counts = report["counts"]
    rejects = sum(counts["rejects"].values())
    files = len(manifest["files"])
    first = (
        f"{output}: committed {counts['vectors']:,} vectors in {files} file(s) from "
        f"{counts['rows_read']:,} rows, in {seconds:,.1f} s"
    )
    lines = [first]
    if counts["rows_resumed"]:
        lines.append(f"{counts['rows_resumed']:,} of them were encoded by an earlier run")
    if counts["rows_reused"]:
        lines.append(f"{counts['rows_reused']:,} were taken over from {report['reused']['output']}")
    if report["ids_against_reused"]:
        found = report["ids_against_reused"]
        lines.append(", ".join(f"{name} {count:,}" for name, count in found.items()))
    if counts["truncated"]:
        lines.append(f"{counts['truncated']:,} texts were cut at the token limit")
    if rejects:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts["rejects"].items())
        what = "reject" if rejects == 1 else "rejects"
        lines.append(f"{rejects:,} {what} ({reasons}): {storage.join(output, 'rejects')}/")
    tokens, rate = report["tokens"], report["encoding"]["tokens_per_second"]
    if rate and tokens["padded"]:
        padding = 1 - tokens["encoded"] / tokens["padded"]
        lines.append(
            f"{tokens['encoded']:,} tokens encoded at {rate:,.0f} tokens/s, {padding:.1%} padding"
        )
    lines.append(f"report: {storage.join(output, REPORT_PAGE)}")
    place = shlex.quote(output)
    lines.append(f"next: python -m pipeline.verify {place}")
    lines.append(f'      python -m pipeline.search {place} "what to look for"')
    return "\n".join(lines)
