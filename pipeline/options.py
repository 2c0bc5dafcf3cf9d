"""The flags of `run`: one table, from which come the parser, the YAML keys and the help."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, NoReturn, cast

import yaml

from transforms.errors import ConfigError
from transforms.records import MetadataField, RowFields

_GROUPS = {
    "input": "Input",
    "expert": "Expert",
    "long": "Long texts",
    "output": "Output",
    "trouble": "Rows in trouble",
    "engine": "Engine",
}


def _flag(
    group: str,
    help_text: str,
    *,
    default: Any = MISSING,
    choices: Sequence[str] | None = None,
    repeatable: bool = False,
    parse: Any = str,
) -> Any:
    metadata = {
        "group": group,
        "help": help_text,
        "choices": choices,
        "repeatable": repeatable,
        "parse": parse,
    }
    return field(default=default, metadata=metadata)


def _parse_bool(value: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if value.lower() not in words:
        raise ValueError(f"{value!r} is neither true nor false")
    return words[value.lower()]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run is asked to do. Field names are the flags and the keys of a config file."""

    input: tuple[str, ...] = _flag(
        "input",
        "path or glob of the corpus; repeatable; local, gs://, s3:// or any Beam file system",
        default=(),
        repeatable=True,
    )
    input_format: str = _flag(
        "input",
        "how the input files are read; auto goes by name and content; rejects runs the rejects of "
        "an earlier run again",
        default="auto",
        choices=("auto", "text", "jsonl", "csv", "parquet", "tfrecord", "rejects"),
    )
    text_field: str = _flag("input", "the field that holds the text", default="text")
    pair_field: str = _flag(
        "input", "the field that holds a second text, encoded together with the first", default=""
    )
    id_field: str = _flag(
        "input",
        "the field that holds the row's id; without it an id is made from file, place and text",
        default="",
    )
    metadata_fields: tuple[str, ...] = _flag(
        "input",
        "fields to carry through, comma-separated; name:type fixes an Arrow type",
        default=(),
        repeatable=True,
    )
    csv_delimiter: str = _flag(
        "input", "delimiter of csv input; by default tab in .tsv files, else comma", default=""
    )
    limit: int = _flag("input", "read only the first N rows; 0 reads all", default=0, parse=int)
    allow_empty: bool = _flag(
        "input",
        "commit an output without rows if the corpus has none",
        default=False,
        parse=_parse_bool,
    )

    expert: str = _flag(
        "expert",
        "short name (see `python -m pipeline.experts`), TF-Hub or Kaggle handle, path, or demo",
        default="wiki_books",
    )
    preprocessor: str = _flag(
        "expert", "handle or path of the preprocessor; by default the expert's own", default=""
    )
    hub_address: str = _flag(
        "expert",
        "address that stands in for https://tfhub.dev (also EXPERTS_HUB_ADDRESS)",
        default="",
    )
    pooling: str = _flag(
        "expert",
        "how token states become one vector",
        default="mean",
        choices=("mean", "cls", "pooled_output", "last2_mean", "first_last_mean", "max"),
    )
    normalize: bool = _flag(
        "expert", "scale every vector to length 1", default=False, parse=_parse_bool
    )

    max_tokens: int = _flag(
        "long",
        "tokens of a text that are encoded, [CLS] and [SEP] included; 0 is the expert's limit",
        default=0,
        parse=int,
    )
    long_text: str = _flag(
        "long",
        "what happens to a longer text",
        default="truncate",
        choices=("truncate", "reject"),
    )

    output: str = _flag("output", "the output directory", default="")
    output_format: str = _flag(
        "output", "format of the output files", default="parquet", choices=("parquet", "tfrecord")
    )
    rows_per_file: int = _flag(
        "output", "most rows of an output file; files come out balanced", default=100_000, parse=int
    )
    keep_text: bool = _flag(
        "output", "write the text (and pair) beside the vector", default=False, parse=_parse_bool
    )
    overwrite: bool = _flag(
        "output",
        "replace a committed output, at the moment of the commit",
        default=False,
        parse=_parse_bool,
    )
    reuse_from: str = _flag(
        "output",
        "an earlier output, or a glob of which the newest committed one is taken: rows whose text "
        "and fingerprint are unchanged get their vectors from there",
        default="",
    )

    max_reject_rate: float = _flag(
        "trouble",
        "share of the rows that may be rejects; above it nothing is committed",
        default=0.1,
        parse=float,
    )
    on_duplicate_id: str = _flag(
        "trouble",
        "a row whose id an earlier row has becomes a reject, or ends the run",
        default="reject",
        choices=("reject", "error"),
    )
    on_bad_file: str = _flag(
        "trouble",
        "a file that breaks off ends the run, or its readable rows are taken",
        default="error",
        choices=("error", "reject"),
    )
    max_row_bytes: int = _flag(
        "trouble", "rows larger than this are rejects", default=16 << 20, parse=int
    )

    engine: str = _flag(
        "engine", "what runs the expert", default="auto", choices=("auto", "tensorflow")
    )
    precision: str = _flag(
        "engine", "arithmetic of the expert", default="auto", choices=("auto", "float32")
    )
    batch_tokens: int = _flag(
        "engine", "padded tokens of a batch: rows × longest", default=4096, parse=int
    )
    threads: int = _flag(
        "engine", "threads of the engine; 0 takes every core", default=0, parse=int
    )
    verbose: bool = _flag(
        "engine", "show library logs and stack traces", default=False, parse=_parse_bool
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot work. Raises: ConfigError."""
        for one in fields(self):
            value, choices = getattr(self, one.name), one.metadata["choices"]
            if choices and value not in choices:
                raise ConfigError(
                    f"--{one.name}={value}: wanted one of {', '.join(choices)}"
                    + suggest(str(value), choices)
                )
        _at_least(self, 0, "limit", "max_tokens", "threads")
        _at_least(self, 1, "rows_per_file", "batch_tokens", "max_row_bytes")
        if not 0 <= self.max_reject_rate <= 1:
            raise ConfigError(
                f"--max_reject_rate={self.max_reject_rate}: wanted a fraction from 0 to 1"
            )
        if 0 < self.max_tokens < 3:
            raise ConfigError(
                f"--max_tokens={self.max_tokens}: wanted at least 3, for [CLS], a token and [SEP]"
            )
        if len(self.csv_delimiter) > 1 and self.csv_delimiter != "\\t":
            raise ConfigError(f"--csv_delimiter={self.csv_delimiter!r}: wanted one character")
        if not self.output:
            raise ConfigError("--output is missing: the directory that the vectors go to")

    def row_fields(self) -> RowFields:
        """The source's fields by role. Raises: ConfigError if one field has two roles."""
        names = [name.strip() for value in self.metadata_fields for name in value.split(",")]
        metadata = []
        for name in filter(None, names):
            plain, _, type_name = name.partition(":")
            metadata.append(MetadataField(plain, type_name or None))
        plain_names = [one.name for one in metadata]
        twice = sorted({name for name in plain_names if plain_names.count(name) > 1})
        if twice:
            raise ConfigError(f"--metadata_fields names {', '.join(twice)} twice; once is enough")
        return RowFields(
            text=self.text_field,
            pair=self.pair_field or None,
            id=self.id_field or None,
            metadata=tuple(metadata),
        )


def _at_least(settings: RunSettings, least: int, *names: str) -> None:
    for name in names:
        if getattr(settings, name) < least:
            raise ConfigError(f"--{name}={getattr(settings, name)}: wanted at least {least}")


def suggest(word: str, known: Sequence[str]) -> str:
    """`; did you mean …?` for a near miss, else nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def beam_flags() -> frozenset[str]:
    """The names of Beam's own options, without the dashes."""
    from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

    parser = _BeamArgumentParser(add_help=False)
    pending = [PipelineOptions]
    while pending:
        for option_class in pending.pop().__subclasses__():
            pending.append(option_class)
            if "_add_argparse_args" in vars(option_class):
                try:
                    option_class._add_argparse_args(parser)
                except argparse.ArgumentError:
                    continue  # an option that two classes share is in already
    return frozenset(name.lstrip("-") for name in parser._option_string_actions)


class _Parser(argparse.ArgumentParser):
    """argparse prints its usage and exits; here an error is an error like the others."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. See python -m pipeline.run --help")


def make_parser() -> argparse.ArgumentParser:
    """The parser of `run`'s own flags; each value stays text until the config file is merged in."""
    parser = _Parser(
        prog="python -m pipeline.run",
        description="Turn a corpus into vectors with a TF-Hub BERT expert. Without --input it runs "
        "the demo: a bundled corpus and an embedded expert, offline.",
        epilog="Beam's own options (--runner, --direct_num_workers, --project, …) pass through.",
        allow_abbrev=False,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--config", help="a YAML file of these flags; flags win over the file")
    groups = {key: parser.add_argument_group(title) for key, title in _GROUPS.items()}
    for one in fields(RunSettings):
        groups[one.metadata["group"]].add_argument(
            f"--{one.name}",
            help=_help_of(one),
            metavar=_metavar_of(one),
            action="append" if one.metadata["repeatable"] else "store",
            **_switch(one),
        )
    return parser


def _switch(one: Any) -> dict[str, Any]:
    """A true-or-false flag may stand without a value."""
    return {"nargs": "?", "const": "true"} if one.metadata["parse"] is _parse_bool else {}


def _help_of(one: Any) -> str:
    text = one.metadata["help"]
    if one.metadata["choices"]:
        text += f"\none of: {', '.join(one.metadata['choices'])}"
    default = one.default
    if default not in ("", ()):
        shown = str(default).lower() if isinstance(default, bool) else default
        text += f"\ndefault: {shown}"
    return str(text).replace("%", "%%")


def _metavar_of(one: Any) -> str:
    parse = one.metadata["parse"]
    return {int: "N", float: "X", _parse_bool: "true|false"}.get(parse, "VALUE")


def parse_settings(argv: Sequence[str]) -> tuple[RunSettings, list[str]]:
    """Read flags and config file.

    Returns: the settings, and the arguments that are Beam's.
    Raises: ConfigError for anything unknown or impossible.
    """
    given, rest = make_parser().parse_known_args(list(argv))
    values: dict[str, Any] = {}
    beam_args: list[str] = []
    config = given.config
    if config is None and not given.input:
        from pipeline._bundled import find_bundled

        config = str(find_bundled("demo.yaml"))
    known = {one.name: one for one in fields(RunSettings)}
    if config is not None:
        for key, value in read_config(config).items():
            if key in known:
                values[key] = value
            else:
                beam_args += _beam_argument(key, value, source=config)
    for name in known:
        value = getattr(given, name)
        if value is not None:
            values[name] = value
    _check_beam_arguments(rest)
    parsed = {name: _parse_value(known[name], value) for name, value in values.items()}
    return RunSettings(**parsed), [*beam_args, *rest]


def read_config(path: str) -> dict[str, Any]:
    """Read a YAML file of flags; `${config_dir}` in a value is the file's own folder.

    Raises: ConfigError if the file cannot be read, is not a mapping or has an unknown key.
    """
    from transforms import storage

    try:
        body = yaml.safe_load(storage.get_bytes(path))
    except FileNotFoundError as error:
        raise ConfigError(f"--config={path}: no such file") from error
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"--config={path}: cannot be read: {error}") from error
    if body is None:
        return {}
    if not isinstance(body, Mapping) or not all(isinstance(key, str) for key in body):
        raise ConfigError(f"--config={path}: wanted a mapping of flags to values")
    folder = os.path.dirname(os.path.abspath(path)) if storage.is_local(path) else ""
    own = [one.name for one in fields(RunSettings)]
    names = beam_flags() | set(own)
    for key in body:
        if key not in names:
            raise ConfigError(f"{path}: unknown key {key!r}" + suggest(key, [*own, *names]))
    return {key: _expand(value, folder=folder) for key, value in body.items()}


def _expand(value: Any, *, folder: str) -> Any:
    if isinstance(value, str):
        return value.replace("${config_dir}", folder)
    if isinstance(value, list):
        return [_expand(item, folder=folder) for item in value]
    return value


def _parse_value(one: Any, value: Any) -> Any:
    """A flag's text, or a YAML value, as the setting's type."""
    parse = one.metadata["parse"]
    if one.metadata["repeatable"]:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(str(item) for item in items)
    if isinstance(value, list | dict):
        raise ConfigError(f"--{one.name}: takes one value, found {value}")
    if value is None:
        raise ConfigError(f"--{one.name}: no value given")
    try:
        return parse(str(value))
    except ValueError as error:
        wanted = {int: "a whole number", float: "a number", _parse_bool: "true or false"}[parse]
        raise ConfigError(f"--{one.name}={value}: wanted {wanted}") from error


def _beam_argument(key: str, value: Any, *, source: str) -> list[str]:
    if isinstance(value, dict):
        raise ConfigError(f"{source}: {key}: takes a value or a list, found a mapping")
    items = value if isinstance(value, list) else [value]
    arguments = []
    for item in items:
        if item is True:
            arguments.append(f"--{key}")
        elif item is not False and item is not None:
            arguments.append(f"--{key}={item}")
    return arguments


def _check_beam_arguments(rest: Sequence[str]) -> None:
    """Every argument that is not ours must be one of Beam's."""
    names: frozenset[str] | None = None
    value_may_follow = False
    for argument in rest:
        if not argument.startswith("--"):
            if value_may_follow:
                value_may_follow = False
                continue
            raise ConfigError(f"unexpected argument {argument!r}; flags look like --name=value")
        name, equals, _ = argument[2:].partition("=")
        names = beam_flags() if names is None else names
        if name not in names:
            own = [one.name for one in fields(RunSettings)]
            raise ConfigError(
                f"unknown flag --{name}"
                + suggest(name, [*own, *sorted(names)]).replace("mean ", "mean --")
                + " See python -m pipeline.run --help"
            )
        value_may_follow = not equals


def describe(settings: RunSettings) -> dict[str, Any]:
    """Every setting by name, as JSON holds it."""
    found = {one.name: getattr(settings, one.name) for one in fields(settings)}
    return {
        name: list(cast(tuple[str, ...], value)) if isinstance(value, tuple) else value
        for name, value in found.items()
    }
