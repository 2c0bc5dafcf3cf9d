"""An expert in Python: texts in, the vectors that `run` writes out.

from pipeline import Expert

expert = Expert("wiki_books")
expert.encode("I enjoy long walks.")  # float32 [768]
expert.encode(["a", "b"])             # float32 [2, 768]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.launch import fingerprint_run
from transforms.errors import ConfigError, ExpertError
from transforms.records import EncodeSettings, RowFailure, VectorBatch

if TYPE_CHECKING:
    from transforms import records
    from transforms.engines import Engine
    from transforms.records import FloatArray
    from transforms.tokenize import Tokenizer


class Expert:
    """An expert, resolved and loaded once, that encodes texts as `run` does.

    Args:
      expert: short name, TF-Hub or Kaggle handle, path, or demo.
      preprocessor, hub_address: as the flags of `run`.
      pooling, normalize, max_tokens, engine, precision, batch_tokens, threads: as the flags of
        `run`; max_tokens=None is the expert's limit, and longer texts are cut there.
      progress: called with a line for the user while something is downloaded.
    Raises: ExpertError if the expert cannot be had or used; ConfigError for a setting that does
      not suit it.
    """

    def __init__(
        self,
        expert: str = "wiki_books",
        *,
        preprocessor: str | None = None,
        hub_address: str | None = None,
        pooling: str = "mean",
        normalize: bool = False,
        max_tokens: int | None = None,
        engine: str = "auto",
        precision: str = "auto",
        batch_tokens: int = 4096,
        threads: int = 0,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        from pipeline.resolve import resolve
        from transforms.quiet import load_tensorflow

        load_tensorflow()
        found = resolve(
            expert, preprocessor=preprocessor, hub_address=hub_address, progress=progress
        )
        settings = EncodeSettings(
            pooling=pooling,
            normalize=normalize,
            max_tokens=found.position_limit if max_tokens is None else max_tokens,
            engine="tensorflow" if engine == "auto" else engine,
            precision="float32" if precision == "auto" else precision,
            batch_tokens=batch_tokens,
            threads=threads,
        )
        self._load(found, settings)

    @classmethod
    def from_resolved(cls, expert: records.Expert, *, settings: EncodeSettings) -> Expert:
        """Load an expert that `pipeline.resolve.resolve` found."""
        made = cls.__new__(cls)
        made._load(expert, settings)
        return made

    def _load(self, expert: records.Expert, settings: EncodeSettings) -> None:
        from transforms.engines import check_settings, get_engine
        from transforms.quiet import load_tensorflow
        from transforms.tokenize import get_tokenizer

        check_settings(expert, settings=settings)
        load_tensorflow()
        self._record = expert
        self._settings = settings
        self._fingerprint, _ = fingerprint_run(expert, settings)
        self._tokenizer: Tokenizer = get_tokenizer(expert)
        self._engine: Engine = get_engine(expert, settings=settings)[0]

    @property
    def name(self) -> str:
        """The short name, or one made from the handle."""
        return self._record.name

    @property
    def handle(self) -> str:
        """The public name of the expert, or its path."""
        return self._record.handle

    @property
    def width(self) -> int:
        """How many numbers a vector has."""
        return self._record.width

    @property
    def fingerprint(self) -> str:
        """The sha256 over all that determines a vector; as an output's manifest has it."""
        return self._fingerprint

    def __repr__(self) -> str:
        own = self._settings
        return (
            f"<Expert {self.handle}: width {self.width}, {own.pooling} pooling, "
            f"{own.max_tokens} tokens at most>"
        )

    def encode(
        self, texts: str | Sequence[str], *, pair: str | Sequence[str] | None = None
    ) -> FloatArray:
        """Encode a text, or a list of them.

        Args:
          texts: one text, or N of them.
          pair: the second text, or N of them, encoded together with the first.
        Returns: float32 [H] for one text, float32 [N, H] for a list.
        Raises: ValueError that names the place of a text that cannot be encoded, and why;
          TypeError for what is no string.
        """
        single = isinstance(texts, str)
        if single != isinstance(pair, str) and pair is not None:
            raise TypeError("texts and pair must both be one string, or both a list of strings")
        column = [texts] if isinstance(texts, str) else list(texts)
        pairs = [pair] if isinstance(pair, str) else None if pair is None else list(pair)
        if pairs is not None and len(pairs) != len(column):
            raise ValueError(f"{len(pairs)} pairs for {len(column)} texts; wanted one for each")
        for name, values in (("text", column), ("pair", pairs or [])):
            for place, value in enumerate(values):
                _check_text(value, name=name, place=place)
        batch, failures = self.encode_rows(column, pairs=pairs)
        if failures:
            first = failures[0]
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            raise ValueError(
                f"text {first.row} cannot be encoded: {first.reason}: {first.message}{more}; "
                "leave it out"
            )
        vectors: FloatArray = batch.vectors[0] if single else batch.vectors
        return vectors

    def encode_rows(
        self, texts: Sequence[str], *, pairs: Sequence[str] | None = None
    ) -> tuple[VectorBatch, list[RowFailure]]:
        """Encode N texts; each comes back as a vector or as a failure, by its place in `texts`."""
        from transforms.encode import encode_rows

        tokenized = self._tokenizer.tokenize(
            texts, pairs=pairs, max_tokens=self._settings.max_tokens
        )
        pieces: list[VectorBatch] = []
        failures = list(tokenized.failures)
        for piece, failed, _ in encode_rows(
            tokenized.tokens, engine=self._engine, settings=self._settings, rows=tokenized.rows
        ):
            failures += failed
            if len(piece):
                pieces.append(piece)
        return _join(pieces, width=self.width), sorted(failures, key=lambda one: one.row)


def _join(pieces: list[VectorBatch], *, width: int) -> VectorBatch:
    """Pieces as one batch, its rows ascending."""
    if not pieces:
        none = np.zeros(0, np.int32)
        return VectorBatch(none, np.zeros((0, width), np.float32), none, np.zeros(0, np.bool_))
    order = np.argsort(np.concatenate([piece.rows for piece in pieces]), kind="stable")
    names = [one.name for one in fields(VectorBatch)]
    return VectorBatch(
        **{name: np.concatenate([getattr(one, name) for one in pieces])[order] for name in names}
    )


def _check_text(value: object, *, name: str, place: int) -> None:
    """Refuse what `run` would make a reject of before it tokenizes."""
    if not isinstance(value, str):
        raise TypeError(f"{name} {place} is {type(value).__name__}; wanted a string")
    problem = None
    if not value or value.isspace():
        problem = f"blank_{name}: it is empty or white space only"
    elif "\0" in value:
        problem = "nul_byte: it holds a NUL byte"
    elif not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            problem = "invalid_utf8: it holds half a surrogate pair"
    if problem:
        raise ValueError(f"{name} {place} cannot be encoded: {problem}; leave it out")


def recorded_settings(manifest: Mapping[str, Any], *, threads: int = 0) -> EncodeSettings:
    """How the run that wrote a manifest encoded."""
    parts = manifest["fingerprint"]["parts"]
    try:
        return EncodeSettings(
            pooling=parts["pooling"],
            normalize=parts["normalize"],
            max_tokens=parts["max_tokens"],
            precision=parts["precision"],
            engine="tensorflow",
            threads=threads,
        )
    except KeyError as error:
        raise ConfigError(
            f"the output's manifest does not say how it was encoded (no {error} in its "
            "fingerprint); make the output again with this version"
        ) from error


def resolve_recorded(
    manifest: Mapping[str, Any],
    *,
    expert: str | None = None,
    preprocessor: str | None = None,
    hub_address: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> records.Expert:
    """Resolve the expert that made an output.

    Args:
      manifest: the output's.
      expert, preprocessor, hub_address: where they are now; None: where the run found them.
    Raises: ExpertError if it cannot be had.
    """
    from pipeline.resolve import DEMO_NAME, resolve
    from transforms.quiet import load_tensorflow

    load_tensorflow()
    about, config = manifest["expert"], manifest["config"]
    is_demo = about["name"] == DEMO_NAME
    if expert is None:
        # The demo's own is built with it; a path recorded on another machine is not there.
        recorded = config.get("preprocessor") if is_demo else about["preprocessor"]
        preprocessor = preprocessor or recorded or None
    return resolve(
        expert or (DEMO_NAME if is_demo else about["handle"]),
        preprocessor=preprocessor,
        hub_address=hub_address or config.get("hub_address") or None,
        progress=progress,
    )


def compare_parts(found: Mapping[str, Any], *, recorded: Mapping[str, Any]) -> list[str]:
    """Say which parts of a fingerprint differ from those that an output recorded."""
    what = {"encoder": "the expert's weights or graph", "tokenizer": "its preprocessor"}
    return [
        f"{what.get(name, name)} ({name}: {_short(found.get(name))}, "
        f"the output's {_short(recorded.get(name))})"
        for name in sorted({*found, *recorded})
        if found.get(name) != recorded.get(name)
    ]


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text


def load_recorded(
    manifest: Mapping[str, Any],
    *,
    expert: str | None = None,
    preprocessor: str | None = None,
    hub_address: str | None = None,
    threads: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Expert:
    """The expert and the settings that made an output, ready to encode.

    Raises: ExpertError if it cannot be had, or is another than the output's.
    """
    settings = recorded_settings(manifest, threads=threads)
    found = resolve_recorded(
        manifest,
        expert=expert,
        preprocessor=preprocessor,
        hub_address=hub_address,
        progress=progress,
    )
    recorded = manifest["fingerprint"]["parts"]
    if differing := compare_parts(fingerprint_run(found, settings)[1], recorded=recorded):
        raise ExpertError(
            f"expert {found.handle} is not the one that made the output: {'; '.join(differing)} "
            "differ; give the output's own with --expert and --preprocessor"
        )
    return Expert.from_resolved(found, settings=settings)
