"""Engines run an expert: padded token ids in, pooled float32 vectors out.

`ENGINES` is the table: name → what makes the engine from an expert and settings. `get_engine` gives
the one that the process shares, so that an expert is loaded once whatever the threads and bundles.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from transforms.errors import ConfigError, ExpertError
from transforms.pooling import find_pooling
from transforms.process_cache import ProcessCache

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transforms.records import EncodeSettings, Expert, FloatArray, Int32Array

_LOG = logging.getLogger(__name__)

# What an error in `Engine.encode` says: the batch was too large for the memory; it may pass if
# tried again; or the input, a row of it, cannot be encoded.
Fault = Literal["memory", "transient", "input"]

# What `pad_batch` makes and an expert takes.
INPUT_NAMES = ("input_word_ids", "input_mask", "input_type_ids")

# [CLS] and [SEP] around one piece.
_LEAST_MAX_TOKENS = 3


class Engine(Protocol):
    """What `encode_rows` needs of an engine. `encode` is called by several threads at once.

    load_seconds: what loading took. fitting_tokens: the most padded tokens of a batch, once one
    did not fit in memory; None until then.
    """

    load_seconds: float
    fitting_tokens: int | None

    def encode(self, inputs: Mapping[str, Int32Array]) -> FloatArray:
        """Encode `pad_batch`'s inputs, int32 [B, L] each → float32 [B, H]."""

    def classify_error(self, error: Exception) -> Fault:
        """Say what an error that `encode` raised means."""


def classify_plain_error(error: Exception) -> Fault:
    """Classify what any library may raise; NumPy's errors are among them."""
    if isinstance(error, MemoryError):
        return "memory"
    # A connection or a mount that is away: nothing about the row.
    if isinstance(error, OSError):
        return "transient"
    return "input"


class TensorFlowEngine:
    """The SavedModel as it is, with pooling and normalisation in one TensorFlow function."""

    def __init__(self, expert: Expert, settings: EncodeSettings) -> None:
        if settings.precision not in ("auto", "float32"):
            raise ConfigError(
                f"precision={settings.precision} is not what engine=tensorflow computes in; "
                "choose float32 or auto"
            )
        started = time.monotonic()
        set_threads(settings.threads)
        # The loaded object owns the variables, the function only refers to them.
        self._model = _load_model(expert)
        self._function = _build_function(self._model, expert=expert, settings=settings)
        self.load_seconds = time.monotonic() - started
        self.fitting_tokens: int | None = None

    def encode(self, inputs: Mapping[str, Int32Array]) -> FloatArray:
        """See `Engine.encode`."""
        import tensorflow as tf

        tensors = [tf.constant(inputs[name], tf.int32) for name in INPUT_NAMES]
        vectors: FloatArray = self._function(*tensors).numpy()
        return vectors

    def classify_error(self, error: Exception) -> Fault:
        """See `Engine.classify_error`."""
        import tensorflow as tf

        if isinstance(error, tf.errors.ResourceExhaustedError):
            return "memory"
        if isinstance(
            error,
            (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError),
        ):
            return "transient"
        return classify_plain_error(error)


def set_threads(threads: int) -> None:
    """Bound TensorFlow's threads; 0 leaves them as they are.

    It binds only before TensorFlow's first operation in a process.
    """
    import tensorflow as tf

    if threads == 0 or tf.config.threading.get_intra_op_parallelism_threads() == threads:
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:
        _LOG.warning(
            "threads=%d has no effect: TensorFlow was already at work in this process when the "
            "expert was loaded",
            threads,
        )


def _load_model(expert: Expert) -> Any:
    import tensorflow as tf

    try:
        return tf.saved_model.load(expert.path)
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise ExpertError(
            f"expert {expert.name} at {expert.path} cannot be loaded ({error}); "
            f"wanted a SavedModel that this machine can read; fetch {expert.handle} again"
        ) from error


def _build_function(model: Any, *, expert: Expert, settings: EncodeSettings) -> Any:
    """Trace encoder, pooling and normalisation into one function of the three inputs → [B, H].

    Only the vectors are its output, so token states never leave it, and what they do not depend on
    is pruned from the graph.
    """
    import tensorflow as tf

    pooling = find_pooling(settings.pooling, layers=expert.layers)

    def encode(input_word_ids: Any, input_mask: Any, input_type_ids: Any) -> Any:
        inputs = dict(zip(INPUT_NAMES, (input_word_ids, input_mask, input_type_ids), strict=True))
        # The object and not its signature: serving_default loses the outputs' names.
        vectors = pooling.pool(model(inputs, training=False), input_mask)
        if settings.normalize:
            # A vector of zeros stays one, and is then a reject; tf.math.l2_normalize would also
            # leave short vectors short.
            norms = tf.norm(vectors, axis=1, keepdims=True)
            vectors = tf.math.divide_no_nan(vectors, norms)
        return tf.cast(vectors, tf.float32)

    spec = tf.TensorSpec([None, None], tf.int32)
    try:
        function = tf.function(encode, autograph=False).get_concrete_function(spec, spec, spec)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ExpertError(
            f"expert {expert.name} at {expert.path} has not the interface of a BERT expert "
            f"({describe_error(error)}); wanted an object that takes input_word_ids, input_mask "
            "and input_type_ids and returns sequence_output, pooled_output and encoder_outputs"
        ) from error
    width = function.structured_outputs.shape[-1]
    if width != expert.width:
        raise ExpertError(
            f"expert {expert.name} at {expert.path} gives vectors of width {width}, but was "
            f"resolved as {expert.width} wide; resolve it again"
        )
    return function


def describe_error(error: BaseException) -> str:
    """Say in one line what failed: the type, and the first line that says something."""
    lines = (line.strip() for line in str(error).splitlines())
    # TensorFlow puts a heading and the place in the graph before the cause.
    telling = (line for line in lines if line and not line.startswith(_HEADINGS))
    return f"{type(error).__name__}: {next(telling, 'no message')}"[:300]


_HEADINGS = ("Graph execution error", "Detected at node", "File ", "<stack traces unavailable>")


ENGINES: dict[str, Callable[[Expert, EncodeSettings], Engine]] = {"tensorflow": TensorFlowEngine}


def choose_engine(name: str) -> str:
    """Name the engine that `--engine=name` means.

    Raises: ConfigError if there is no such engine.
    """
    if name == "auto":
        return "tensorflow"
    if name not in ENGINES:
        raise ConfigError(f"engine={name!r} is unknown; choose one of auto, {', '.join(ENGINES)}")
    return name


def check_settings(expert: Expert, *, settings: EncodeSettings) -> None:
    """Check what can be checked before anything is loaded.

    Raises: ConfigError with the bound and the value.
    """
    choose_engine(settings.engine)
    find_pooling(settings.pooling, layers=expert.layers)
    if not _LEAST_MAX_TOKENS <= settings.max_tokens <= expert.position_limit:
        raise ConfigError(
            f"max_tokens={settings.max_tokens} is not between {_LEAST_MAX_TOKENS} and "
            f"{expert.name}'s limit of {expert.position_limit}; "
            "choose one between"
        )
    if settings.batch_tokens < 1:
        raise ConfigError(f"batch_tokens={settings.batch_tokens}; wanted at least 1")
    if settings.threads < 0:
        raise ConfigError(f"threads={settings.threads}; wanted 0 (all cores) or more")
    if not settings.checkpoint_seconds > 0:
        raise ConfigError(f"checkpoint_seconds={settings.checkpoint_seconds}; wanted more than 0")


_CACHE: ProcessCache[Engine] = ProcessCache(capacity=4)


def get_engine(expert: Expert, *, settings: EncodeSettings) -> tuple[Engine, bool]:
    """Return the process's engine of `expert`, and whether this very call loaded it.

    Several threads may ask at once: one loads, the others wait for it.
    """
    check_settings(expert, settings=settings)
    name = choose_engine(settings.engine)
    key = (
        expert.fingerprint,
        expert.path,
        settings.pooling,
        settings.normalize,
        settings.precision,
        name,
        settings.threads,
    )
    return _CACHE.get(key, load=lambda: ENGINES[name](expert, settings))


def find_bad_vectors(vectors: FloatArray, *, normalize: bool) -> dict[int, str]:
    """Find the rows of `vectors` [B, H] that are no vectors: place → reason code."""
    bad = dict.fromkeys(np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist(), "not_finite")
    if normalize:
        bad |= dict.fromkeys(np.flatnonzero(~vectors.any(axis=1)).tolist(), "zero_vector")
    return bad
