"""What a SavedModel is, read from its files: interface, vocabulary, completeness, fingerprint.

No weight is loaded and no graph is built, so that a wrong model is refused in a fraction of a
second. Paths may be local or of any file system that TensorFlow itself reads (`gs://`).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

from transforms.errors import ExpertError

_LOG = logging.getLogger(__name__)

INPUT_NAMES = ("input_word_ids", "input_mask", "input_type_ids")
OUTPUT_NAMES = ("pooled_output", "sequence_output", "encoder_outputs")

_SAVED_MODEL = "saved_model.pb"
_INDEX = "variables/variables.index"
_READ_BYTES = 4 << 20
# BERT's own; taken, with a warning, only where a model hides its position embeddings.
_USUAL_POSITION_LIMIT = 512
_LISTED_NAMES = 6


@dataclass(frozen=True, slots=True)
class EncoderInterface:
    """What an encoder takes and gives.

    `vocab_path` and `vocab_sha256` are None where the model carries no vocabulary, `vocab_size`
    (rows of the word embeddings) and `lower_case` where it does not say.
    """

    path: str
    width: int
    layers: int
    position_limit: int
    vocab_path: str | None
    vocab_sha256: str | None
    vocab_size: int | None
    lower_case: bool | None


@dataclass(frozen=True, slots=True)
class PreprocessorInterface:
    """What a preprocessor tokenizes with; `lower_case` is None where its graph does not tell."""

    path: str
    vocab_path: str
    vocab_sha256: str
    vocab_size: int
    lower_case: bool | None


def inspect_encoder(path: str) -> EncoderInterface:
    """Check that a SavedModel is a BERT encoder of the second TF-Hub form, and measure it.

    Args:
      path: a SavedModel folder.
    Returns: its interface.
    Raises: ExpertError, saying what was found, if it is anything else.
    """
    model = _read_model(path, role="expert")
    root = model.graph.nodes[0]
    children = {child.local_name: child.node_id for child in root.children}
    if "tokenize" in children and "bert_pack_inputs" in children:
        raise ExpertError(
            f"expert {path}: found a preprocessor (it has `tokenize` and `bert_pack_inputs`), "
            f"wanted an encoder; give it as --preprocessor and the encoder as --expert"
        )
    traces = _list_traces(model, children.get("__call__"))
    if not traces:
        found = ", ".join(sorted(model.signatures)) or "none"
        raise ExpertError(
            f"expert {path}: its object cannot be called (signatures: {found}); wanted an encoder "
            f"whose call takes a dict of {', '.join(INPUT_NAMES)}"
        )
    fitting = [trace for trace in traces if _is_encoder_input(trace.canonicalized_input_signature)]
    if not fitting:
        raise ExpertError(_describe_wrong_inputs(path, traces))
    for_inference = [
        trace for trace in fitting if not _is_training(trace.canonicalized_input_signature)
    ]
    if not for_inference:
        raise ExpertError(
            f"expert {path}: its call was saved with training=True alone, so dropout would make "
            f"every vector random; export it again with a trace for training=False"
        )
    width, layers = _measure_outputs(path, for_inference[0].output_signature)
    vocab_path = _asset_path(model, children.get("vocab_file"))
    return EncoderInterface(
        path=path,
        width=width,
        layers=layers,
        position_limit=_find_position_limit(model),
        vocab_path=vocab_path,
        vocab_sha256=None if vocab_path is None else hash_file(vocab_path),
        vocab_size=_find_vocab_size(model),
        lower_case=_read_flag(model, children.get("do_lower_case"), name="do_lower_case"),
    )


def inspect_preprocessor(path: str) -> PreprocessorInterface:
    """Check that a SavedModel is a BERT preprocessor, and find its vocabulary.

    Args:
      path: a SavedModel folder.
    Returns: its interface.
    Raises: ExpertError, saying what was found, if it is anything else.
    """
    model = _read_model(path, role="preprocessor")
    children = {child.local_name: child.node_id for child in model.graph.nodes[0].children}
    missing = [name for name in ("tokenize", "bert_pack_inputs") if name not in children]
    if missing:
        traces = _list_traces(model, children.get("__call__"))
        if any(_is_encoder_input(trace.canonicalized_input_signature) for trace in traces):
            found = "an encoder"
        else:
            found = "an object with " + _join_some(sorted(children))
        raise ExpertError(
            f"preprocessor {path}: found {found}, without `{'` and `'.join(missing)}`; wanted a "
            f"BERT preprocessor such as https://tfhub.dev/tensorflow/bert_en_uncased_preprocess/3"
        )
    subtree = _walk(model, children["tokenize"])
    assets = [node for node in subtree if model.graph.nodes[node].WhichOneof("kind") == "asset"]
    names = {_asset_path(model, node) for node in assets}
    if len(names) != 1:
        raise ExpertError(
            f"preprocessor {path}: `tokenize` reads {len(names)} files, wanted the one vocabulary "
            f"of a BERT word-piece tokenizer; sentence-piece models are not supported"
        )
    vocab_path = cast(str, names.pop())
    return PreprocessorInterface(
        path=path,
        vocab_path=vocab_path,
        vocab_sha256=hash_file(vocab_path),
        vocab_size=len(read_vocabulary(vocab_path)),
        lower_case=_find_lower_casing(model, subtree),
    )


def check_pair(encoder: EncoderInterface, preprocessor: PreprocessorInterface) -> None:
    """Check that a preprocessor makes the ids that an encoder was trained on.

    Raises: ExpertError if the vocabularies or the lower-casing differ.
    """
    remedy = "give the preprocessor that the expert was published with as --preprocessor"
    pair = f"expert {encoder.path} does not fit preprocessor {preprocessor.path}"
    if encoder.vocab_sha256 is not None:
        if encoder.vocab_sha256 != preprocessor.vocab_sha256:
            count = len(read_vocabulary(cast(str, encoder.vocab_path)))
            raise ExpertError(
                f"{pair}: their vocabularies differ ({count} and {preprocessor.vocab_size} "
                f"pieces), so every id would mean another word; {remedy}"
            )
    elif encoder.vocab_size not in (None, preprocessor.vocab_size):
        raise ExpertError(
            f"{pair}: the expert embeds {encoder.vocab_size} pieces, the preprocessor's vocabulary "
            f"has {preprocessor.vocab_size}; {remedy}"
        )
    both_say = encoder.lower_case is not None and preprocessor.lower_case is not None
    if both_say and encoder.lower_case != preprocessor.lower_case:
        raise ExpertError(
            f"{pair}: the expert says do_lower_case={encoder.lower_case}, the preprocessor "
            f"{'lower-cases' if preprocessor.lower_case else 'keeps case'}; {remedy}"
        )


def fingerprint_model(path: str) -> str:
    """Hash what a SavedModel computes: graph, weights and assets, by name and content.

    Files that differ between two copies of one model (`fingerprint.pb`, `keras_metadata.pb`) are
    left out. Reads in a stream, in constant memory.

    Args:
      path: a SavedModel folder.
    Returns: 64 hex digits of a sha256.
    Raises: ExpertError if a file cannot be read.
    """
    digest = hashlib.sha256()
    for name in [_SAVED_MODEL, *_list_variable_files(path), *_list_assets(path)]:
        full = _join(path, name)
        # The size closes the name's entry, so that no two sets of files give one stream.
        digest.update(f"{name}\0{_size(full)}\0".encode())
        _hash_into(digest, full)
    return digest.hexdigest()


def find_fault(path: str) -> str | None:
    """Say what a SavedModel folder lacks to be whole, or None.

    Compares the files with the model's own lists: assets by name, and the data of the variables
    by the extents in `variables.index`. TF1 hub modules count as whole.

    Args:
      path: a folder, which exists.
    """
    if not _exists(_join(path, _SAVED_MODEL)):
        if _exists(_join(path, "saved_model.pbtxt")):
            return None
        return f"it has no {_SAVED_MODEL}"
    try:
        model = _parse_model(path)
    except ValueError as error:
        return str(error)
    for name in model.assets:
        if not _exists(_join(path, f"assets/{name}")):
            return f"it has no assets/{name}"
    if _exists(_join(path, _INDEX)):
        return _find_short_shard(path)
    if len(model.graph.nodes):
        return f"it has no {_INDEX}"
    return None


def read_vocabulary(path: str) -> list[str]:
    """Read a vocabulary file: one piece a line, its number the piece's id."""
    with _open(path) as file:
        data = file.read()
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ExpertError(
            f"vocabulary {path}: byte {error.start} is not UTF-8; wanted a text file with one word "
            f"piece a line, so copy or download the model again"
        ) from error
    if lines and not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def hash_file(path: str) -> str:
    """The sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    _hash_into(digest, path)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Model:
    """The first meta graph of a SavedModel; `graph` is its object graph, empty in TF1."""

    path: str
    graph: Any
    functions: Any
    signatures: tuple[str, ...]
    assets: tuple[str, ...]


def _parse_model(path: str) -> _Model:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel()
    with _open(_join(path, _SAVED_MODEL)) as file:
        data = file.read()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(f"its {_SAVED_MODEL} ({len(data)} bytes) is not a SavedModel") from error
    if not proto.meta_graphs:
        raise ValueError(f"its {_SAVED_MODEL} ({len(data)} bytes) is empty")
    meta = proto.meta_graphs[0]
    return _Model(
        path=path,
        graph=meta.object_graph_def,
        functions=meta.graph_def.library.function,
        signatures=tuple(meta.signature_def),
        assets=tuple(asset.filename for asset in meta.asset_file_def),
    )


def _read_model(path: str, *, role: str) -> _Model:
    """Parse a folder that should be a TF2 SavedModel, or say what it is instead."""
    wanted = "wanted a TF2 SavedModel folder"
    if not _exists(path):
        raise ExpertError(f"{role} {path}: no such folder; {wanted}, check the path")
    if not _is_folder(path):
        raise ExpertError(f"{role} {path}: found a file; {wanted} (unpack an archive first)")
    if _exists(_join(path, "tfhub_module.pb")):
        raise ExpertError(
            f"{role} {path}: found a TF1 hub module (tfhub_module.pb); {wanted}, so use the "
            f"model's TF2 version, for the experts version 2 (…/2)"
        )
    if not _exists(_join(path, _SAVED_MODEL)):
        found = _join_some(sorted(_list_folder(path))) or "nothing"
        raise ExpertError(
            f"{role} {path}: found {found}, no {_SAVED_MODEL}; {wanted}, which has {_SAVED_MODEL} "
            f"and variables/"
        )
    fault = find_fault(path)
    if fault is not None:
        raise ExpertError(f"{role} {path}: {fault}; {wanted}, so copy or download it again")
    model = _parse_model(path)
    if not len(model.graph.nodes):
        found = ", ".join(model.signatures) or "none"
        raise ExpertError(
            f"{role} {path}: found a TF1 SavedModel (signatures: {found}); {wanted}, for the "
            f"experts version 2 (…/2)"
        )
    return model


def _list_traces(model: _Model, node_id: int | None) -> list[Any]:
    """The concrete functions behind a callable node: a function, or an object with a call."""
    if node_id is None:
        return []
    node = model.graph.nodes[node_id]
    names = node.function.concrete_functions if node.WhichOneof("kind") == "function" else ()
    return [model.graph.concrete_functions[name] for name in names]


def _walk(model: _Model, start: int) -> list[int]:
    """Ids of a node and all below it."""
    seen, waiting = {start}, [start]
    while waiting:
        for child in model.graph.nodes[waiting.pop()].children:
            if child.node_id not in seen:
                seen.add(child.node_id)
                waiting.append(child.node_id)
    return sorted(seen)


def _arguments(signature: Any) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of a canonicalized signature."""
    pair = signature.tuple_value.values
    if len(pair) != 2:
        return [], {}
    return list(pair[0].tuple_value.values), dict(pair[1].dict_value.fields)


def _is_encoder_input(signature: Any) -> bool:
    positional, keywords = _arguments(signature)
    first = positional[0] if positional else keywords.get("inputs")
    if first is None or first.WhichOneof("kind") != "dict_value":
        return False
    fields = first.dict_value.fields
    return set(fields) == set(INPUT_NAMES) and all(
        _describe(spec) in ("int32 [?, ?]", "int32 of any shape") for spec in fields.values()
    )


def _is_training(signature: Any) -> bool:
    positional, keywords = _arguments(signature)
    return any(
        value.WhichOneof("kind") == "bool_value" and value.bool_value
        for value in [*positional[1:], *keywords.values()]
    )


def _describe_wrong_inputs(path: str, traces: list[Any]) -> str:
    positional, keywords = _arguments(traces[0].canonicalized_input_signature)
    first = positional[0] if positional else None
    kind = None if first is None else first.WhichOneof("kind")
    found = ", ".join(
        [_describe(value) for value in positional]
        + [f"{name}={_describe(value)}" for name, value in keywords.items()]
    )
    specs = [_describe(value) for value in positional]
    if (kind in ("list_value", "tuple_value") and "int32" in specs[0]) or (
        len(specs) >= 3 and all(spec.startswith("int32 [") for spec in specs[:3])
    ):
        return (
            f"expert {path}: its call takes a list ({found}), the form of version 1; wanted a "
            f"dict of {', '.join(INPUT_NAMES)}, so use version 2 of the model (…/2)"
        )
    return (
        f"expert {path}: its call takes ({found}); wanted a BERT encoder, whose call takes a dict "
        f"of {', '.join(INPUT_NAMES)}, each int32 [?, ?]"
    )


def _measure_outputs(path: str, output: Any) -> tuple[int, int]:
    """Width and number of layers, from the call's output signature."""
    found = f"expert {path}: its call returns {_describe(output)}"
    if output.WhichOneof("kind") != "dict_value":
        raise ExpertError(
            f"{found}; wanted a dict of {', '.join(OUTPUT_NAMES)} (version 1 models return a "
            f"tuple: use version 2)"
        )
    fields = output.dict_value.fields
    missing = [name for name in OUTPUT_NAMES if name not in fields]
    if missing:
        raise ExpertError(f"{found}, without {', '.join(missing)}; use a newer version of it")
    layers = list(fields["encoder_outputs"].list_value.values)
    states = [fields["sequence_output"], *layers]
    dims = [dim.size for dim in fields["pooled_output"].tensor_spec_value.shape.dim]
    width = dims[-1] if len(dims) == 2 else -1
    wanted = f"float32 [?, ?, {width}]"
    if width < 1 or not layers or any(_describe(state) != wanted for state in states):
        raise ExpertError(
            f"{found}; wanted pooled_output float32 [?, H], sequence_output and each of a list "
            f"encoder_outputs float32 [?, ?, H] of one known width H"
        )
    return width, len(layers)


def _describe(value: Any) -> str:
    """A value of a signature as a reader would write it, such as "int32 [?, ?]"."""
    kind = value.WhichOneof("kind")
    if kind in ("tensor_spec_value", "bounded_tensor_spec_value"):
        return _describe_tensor(getattr(value, kind))
    if kind == "dict_value":
        items = sorted(value.dict_value.fields.items())
        return "{" + ", ".join(f"{name}: {_describe(item)}" for name, item in items) + "}"
    if kind == "list_value":
        return "[" + ", ".join(_describe(item) for item in value.list_value.values) + "]"
    if kind == "tuple_value":
        return "(" + ", ".join(_describe(item) for item in value.tuple_value.values) + ")"
    if kind == "type_spec_value":
        return str(value.type_spec_value.type_spec_class_name)
    if kind is None or kind == "none_value":
        return "None"
    return str(getattr(value, kind))


def _describe_tensor(spec: Any) -> str:
    import tensorflow as tf

    name = tf.dtypes.as_dtype(spec.dtype).name
    if spec.shape.unknown_rank:
        return f"{name} of any shape"
    dims = ", ".join("?" if dim.size < 0 else str(dim.size) for dim in spec.shape.dim)
    return f"{name} [{dims}]"


def _list_variables(model: _Model) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the variables: the saved name, and the attributes that hold it."""
    for node in model.graph.nodes:
        for child in node.children:
            target = model.graph.nodes[child.node_id]
            if target.WhichOneof("kind") == "variable":
                shape = tuple(dim.size for dim in target.variable.shape.dim)
                yield f"{target.variable.name} {child.local_name}".lower(), shape


def _find_position_limit(model: _Model) -> int:
    rows = [
        shape[0]
        for name, shape in _list_variables(model)
        if "position" in name and "relative" not in name and len(shape) == 2
    ]
    if rows:
        return min(rows)
    _LOG.warning(
        "expert %s: no variable of position embeddings found; taking %d as its token limit",
        model.path,
        _USUAL_POSITION_LIMIT,
    )
    return _USUAL_POSITION_LIMIT


def _find_vocab_size(model: _Model) -> int | None:
    rows = {
        shape[0]
        for name, shape in _list_variables(model)
        if re.search(r"word_embeddings?\b", name) and len(shape) == 2
    }
    return rows.pop() if len(rows) == 1 else None


def _asset_path(model: _Model, node_id: int | None) -> str | None:
    if node_id is None:
        return None
    node = model.graph.nodes[node_id]
    if node.WhichOneof("kind") != "asset":
        return None
    return _join(model.path, f"assets/{model.assets[node.asset.asset_file_def_index]}")


def _read_flag(model: _Model, node_id: int | None, *, name: str) -> bool | None:
    """The value of a boolean variable of the root, read alone from the checkpoint."""
    if node_id is None or model.graph.nodes[node_id].WhichOneof("kind") != "variable":
        return None
    import tensorflow as tf

    reader = tf.train.load_checkpoint(_join(model.path, "variables/variables"))
    key = f"{name}/.ATTRIBUTES/VARIABLE_VALUE"
    if not reader.has_tensor(key):
        # A variable that is reached by two ways is saved under the name of one of them.
        key = _checkpoint_key(reader, node_id)
    return bool(reader.get_tensor(key)) if key else None


def _checkpoint_key(reader: Any, node_id: int) -> str:
    """The checkpoint's key for a node, from the object graph that a checkpoint carries."""
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
    if node_id >= len(graph.nodes) or not graph.nodes[node_id].attributes:
        return ""
    return str(graph.nodes[node_id].attributes[0].checkpoint_key)


def _find_lower_casing(model: _Model, subtree: list[int]) -> bool | None:
    """Whether the functions under `tokenize` fold case; None where they hide it.

    The plain tokenizer folds case with an op of its own; the fast one keeps the choice inside a
    compiled buffer, where only its behaviour shows it.
    """
    bodies = {function.signature.name: function for function in model.functions}
    waiting = [
        name
        for node in subtree
        for name in (
            *model.graph.nodes[node].function.concrete_functions,
            model.graph.nodes[node].bare_concrete_function.concrete_function_name,
        )
        if name
    ]
    ops: set[str] = set()
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in bodies:
            continue
        seen.add(name)
        for node in bodies[name].node_def:
            ops.add(node.op)
            waiting.extend(attr.func.name for attr in node.attr.values() if attr.func.name)
    if any("FastBertNormalize" in op for op in ops):
        return None
    if any("CaseFoldUTF8" in op or op == "StringLower" for op in ops):
        return True
    return False if any("WordpieceTokenize" in op for op in ops) else None


def _list_variable_files(path: str) -> list[str]:
    folder = _join(path, "variables")
    if not _exists(folder):
        return []
    return sorted(
        f"variables/{name}"
        for name in _list_folder(folder)
        if re.fullmatch(r"variables\.(index|data-\d+-of-\d+)", name)
    )


def _list_assets(path: str) -> list[str]:
    folder = _join(path, "assets")
    if not _exists(folder):
        return []
    return sorted(
        f"assets/{name}"
        for name in _list_folder(folder)
        if not _is_folder(_join(folder, name)) and not name.startswith(".")
    )


def _find_short_shard(path: str) -> str | None:
    """Compare the data files of the variables with the extents that their index lists."""
    with _open(_join(path, _INDEX)) as file:
        data = file.read()
    try:
        ends, shards = _read_extents(data)
    except (ValueError, IndexError, struct.error) as error:
        return f"its {_INDEX} ({len(data)} bytes) is damaged: {error}"
    for shard, end in sorted(ends.items()):
        name = f"variables/variables.data-{shard:05d}-of-{shards:05d}"
        full = _join(path, name)
        if not _exists(full):
            return f"it has no {name}"
        size = _size(full)
        if size < end:
            return f"its {name} has {size} bytes of {end}"
    return None


def _read_extents(data: bytes) -> tuple[dict[int, int], int]:
    """Shard → the bytes it must have at least, and the number of shards, of a variables.index.

    Source: tensorflow/core/util/tensor_bundle (a LevelDB table of BundleEntryProto by name).
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]
    from tensorflow.core.protobuf import tensor_bundle_pb2

    header = tensor_bundle_pb2.BundleHeaderProto()
    ends: dict[int, int] = {}
    try:
        for key, value in _read_table(data):
            if not key:
                header.ParseFromString(value)
                continue
            entry = tensor_bundle_pb2.BundleEntryProto()
            entry.ParseFromString(value)
            ends[entry.shard_id] = max(ends.get(entry.shard_id, 0), entry.offset + entry.size)
    except DecodeError as error:
        raise ValueError("an entry cannot be decoded") from error
    if header.num_shards < 1:
        raise ValueError("it has no header")
    return ends, header.num_shards


_TABLE_FOOTER_BYTES = 48
_TABLE_MAGIC = 0xDB4775248B80FB57


def _read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a LevelDB table whose blocks are not compressed."""
    if len(data) < _TABLE_FOOTER_BYTES:
        raise ValueError("it is cut off")
    footer = data[-_TABLE_FOOTER_BYTES:]
    if struct.unpack("<Q", footer[-8:])[0] != _TABLE_MAGIC:
        raise ValueError("its end is not that of a table")
    position = 0
    for _ in range(2):  # offset and size of the meta index, which is always empty
        _, position = _read_varint(footer, position)
    offset, position = _read_varint(footer, position)
    size, _ = _read_varint(footer, position)
    for _, handle in _read_block(data, offset, size):
        block_offset, after = _read_varint(handle, 0)
        block_size, _ = _read_varint(handle, after)
        yield from _read_block(data, block_offset, block_size)


def _read_block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    if offset + size + 1 > len(data) - _TABLE_FOOTER_BYTES:
        raise ValueError("a block lies outside it")
    if data[offset + size]:
        raise ValueError("a block is compressed, which TensorFlow does not write")
    block = data[offset : offset + size]
    (restarts,) = struct.unpack("<I", block[-4:])
    end = len(block) - 4 - 4 * restarts
    position, key = 0, b""
    while position < end:
        shared, position = _read_varint(block, position)
        fresh, position = _read_varint(block, position)
        length, position = _read_varint(block, position)
        key = key[:shared] + block[position : position + fresh]
        position += fresh
        yield key, block[position : position + length]
        position += length


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7


def _join_some(names: list[str]) -> str:
    rest = len(names) - _LISTED_NAMES
    return ", ".join(names[:_LISTED_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def _is_local(path: str) -> bool:
    return "://" not in path


def _gfile() -> Any:
    import tensorflow as tf

    return tf.io.gfile


def _join(path: str, name: str) -> str:
    return path.rstrip("/") + "/" + name


def _exists(path: str) -> bool:
    return os.path.exists(path) if _is_local(path) else bool(_gfile().exists(path))


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) if _is_local(path) else bool(_gfile().isdir(path))


def _size(path: str) -> int:
    with _explain_unreadable(path):
        return os.path.getsize(path) if _is_local(path) else int(_gfile().stat(path).length)


def _list_folder(path: str) -> list[str]:
    with _explain_unreadable(path):
        if _is_local(path):
            return os.listdir(path)
    return [name.rstrip("/") for name in _gfile().listdir(path)]


def _open(path: str) -> IO[bytes]:
    with _explain_unreadable(path):
        if _is_local(path):
            return open(path, "rb")
    return cast("IO[bytes]", _gfile().GFile(path, "rb"))


@contextlib.contextmanager
def _explain_unreadable(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExpertError(
            f"cannot read {path}: {error.strerror or error}; check that it exists and its "
            f"permissions"
        ) from error


def _hash_into(digest: Any, path: str) -> None:
    with _open(path) as file:
        if not _is_local(path):
            while piece := file.read(_READ_BYTES):
                digest.update(piece)
            return
        buffer = bytearray(_READ_BYTES)
        view = memoryview(buffer)
        while count := cast(Any, file).readinto(buffer):
            digest.update(view[:count])
