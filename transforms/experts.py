"""The experts by name, and the way from a name, a handle or a path to files that are checked.

`resolve_expert` runs once, in the launcher; what it returns is all that a worker needs.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from transforms import hub, savedmodel, tokenizer_probe
from transforms.errors import ExpertError
from transforms.records import Expert

Progress = Callable[[str], None]

HUB_ADDRESS = "https://tfhub.dev"
KAGGLE_ADDRESS = "https://www.kaggle.com/models"
HUB_ADDRESS_VARIABLE = "EXPERTS_HUB_ADDRESS"

UNCASED_PREPROCESSOR = f"{HUB_ADDRESS}/tensorflow/bert_en_uncased_preprocess/3"
_EXPERT_PREFIX = f"{HUB_ADDRESS}/google/experts/bert/"


@dataclass(frozen=True, slots=True)
class ExpertInfo:
    """One of the published experts: what it learned from, what for, and where it is."""

    name: str
    handle: str
    kaggle_handle: str
    trained_on: str
    task: str
    meant_for: str
    width: int = 768
    layers: int = 12
    position_limit: int = 512
    preprocessor_handle: str = UNCASED_PREPROCESSOR


def _describe_expert(name: str, trained_on: str, task: str, meant_for: str) -> ExpertInfo:
    return ExpertInfo(
        name=name,
        handle=f"{_EXPERT_PREFIX}{name}/2",
        kaggle_handle=(
            f"{KAGGLE_ADDRESS}/google/experts-bert/tensorFlow2/"
            f"{name.replace('_', '-').replace('/', '-')}/2"
        ),
        trained_on=trained_on,
        task=task,
        meant_for=meant_for,
    )


_WIKI = "Wikipedia + BooksCorpus"
_PUBMED = "MEDLINE/PubMed"
_FROM_SCRATCH = "masked LM + next sentence"

EXPERTS: dict[str, ExpertInfo] = {
    info.name: info
    for info in (
        _describe_expert("wiki_books", _WIKI, _FROM_SCRATCH, "general English"),
        _describe_expert(
            "wiki_books/mnli", f"{_WIKI} + MNLI", "MNLI", "inference between two sentences"
        ),
        _describe_expert(
            "wiki_books/qnli", f"{_WIKI} + QNLI", "QNLI", "does this context answer this question"
        ),
        _describe_expert(
            "wiki_books/qqp", f"{_WIKI} + Quora question pairs", "QQP", "same-question similarity"
        ),
        _describe_expert("wiki_books/sst2", f"{_WIKI} + SST-2", "SST-2", "sentiment"),
        _describe_expert(
            "wiki_books/squad2", f"{_WIKI} + SQuAD 2.0", "SQuAD 2.0", "question answering"
        ),
        _describe_expert("pubmed", _PUBMED, _FROM_SCRATCH, "medical and scientific text"),
        _describe_expert(
            "pubmed/squad2", f"{_PUBMED} + SQuAD 2.0", "SQuAD 2.0", "medical question answering"
        ),
    )
}

_KAGGLE_PREPROCESSORS = {
    f"{KAGGLE_ADDRESS}/tensorflow/bert/tensorFlow2/en-uncased-preprocess/3": UNCASED_PREPROCESSOR
}

# Families of encoders by the path of their handle → the path of their preprocessor. A mistake
# here cannot pass in silence: `savedmodel.check_pair` compares the vocabularies.
_PREPROCESSORS = (
    (r"google/experts/bert/.+", "tensorflow/bert_en_uncased_preprocess/3"),
    (
        r"tensorflow/(small_bert/)?bert_en_(wwm_)?uncased_L-.+",
        "tensorflow/bert_en_uncased_preprocess/3",
    ),
    (r"tensorflow/bert_en_(wwm_)?cased_L-.+", "tensorflow/bert_en_cased_preprocess/3"),
    (r"tensorflow/bert_multi_cased_L-.+", "tensorflow/bert_multi_cased_preprocess/3"),
    (r"tensorflow/bert_zh_L-.+", "tensorflow/bert_zh_preprocess/3"),
    (r"tensorflow/talkheads_ggelu_bert_en_.+", "tensorflow/bert_en_uncased_preprocess/3"),
    (r"tensorflow/mobilebert_en_uncased_L-.+", "tensorflow/bert_en_uncased_preprocess/3"),
    (r"google/electra_(small|base|large)/\d+", "tensorflow/bert_en_uncased_preprocess/3"),
    (r"google/MuRIL/\d+", "google/MuRIL_preprocess/1"),
    (r"google/LaBSE/\d+", "google/universal-sentence-encoder-cmlm/multilingual-preprocess/2"),
)

# TF1 hub modules by the path of their handle → the TF2 model that took their place.
_TF1_MODULES = (
    (
        r"google/(?:small_bert/)?bert_uncased_(L-\d+_H-(?:128|256|512)_A-\d+)/\d+",
        r"tensorflow/small_bert/bert_en_uncased_\1/2",
    ),
    (r"google/bert_uncased_(L-[^/]+)/\d+", r"tensorflow/bert_en_uncased_\1/4"),
    (r"google/bert_cased_(L-[^/]+)/\d+", r"tensorflow/bert_en_cased_\1/4"),
    (r"google/bert_multi_cased_(L-[^/]+)/\d+", r"tensorflow/bert_multi_cased_\1/4"),
    (r"google/bert_chinese_(L-[^/]+)/\d+", r"tensorflow/bert_zh_\1/4"),
)

_SIBLING_PREPROCESSORS = ("preprocess", "preprocessor")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model is.

    `handle` is its public name, `address` what is asked for it: the same, or the handle at
    another hub, or a path. `kind` is hub, path or remote.
    """

    name: str
    handle: str
    address: str
    kind: str


def resolve_expert(
    expert: str,
    *,
    preprocessor: str | None = None,
    hub_address: str | None = None,
    progress: Progress | None = None,
    probe_tokenizer: bool = True,
) -> Expert:
    """Find, fetch, check and fingerprint an expert and its preprocessor.

    Args:
      expert: a short name, a TF-Hub or Kaggle handle, another http(s) address of a model archive,
        or a path (local, gs://, s3:// or any Beam file system).
      preprocessor: the same for the preprocessor; None for the one that belongs to the expert.
      hub_address: what stands in for https://tfhub.dev; None for EXPERTS_HUB_ADDRESS, if set.
      progress: called with a line for the user now and then.
      probe_tokenizer: compare the fast tokenizer with the preprocessor, once per preprocessor;
        otherwise take the preprocessor.
    Returns: what a worker needs to load the expert.
    Raises: ExpertError if there is no such expert, it cannot be had, or it is of another kind.
    """
    address = _check_hub_address(hub_address or os.environ.get(HUB_ADDRESS_VARIABLE))
    source = find_source(expert, hub_address=address)
    pre_source = None
    if preprocessor:
        pre_source = find_source(preprocessor, hub_address=address, role="preprocessor")
    elif source.kind == "hub":  # before the download, which may take minutes
        pre_source = _find_preprocessor(source, hub_address=address)
    with _explain_remote_errors(source):
        path = _fetch(source, progress=progress)
        encoder = savedmodel.inspect_encoder(path)
    if pre_source is None:
        pre_source = _find_preprocessor(source, hub_address=address)
    with _explain_remote_errors(pre_source):
        pre_path = _fetch(pre_source, progress=progress)
        interface = savedmodel.inspect_preprocessor(pre_path)
    savedmodel.check_pair(encoder, interface)
    with _explain_remote_errors(source):
        fingerprint = savedmodel.fingerprint_model(path)
        tokenizer_fingerprint = savedmodel.fingerprint_model(pre_path)
    lower_case = interface.lower_case if interface.lower_case is not None else encoder.lower_case
    if lower_case is None:
        lower_case = tokenizer_probe.observe_lower_casing(pre_path)
    tokenizer = "preprocessor"
    if probe_tokenizer:
        tokenizer = tokenizer_probe.probe_tokenizer(
            pre_path,
            vocab_path=interface.vocab_path,
            lower_case=lower_case,
            fingerprint=tokenizer_fingerprint,
        )
    return Expert(
        name=source.name,
        handle=source.handle,
        path=path,
        preprocessor_handle=pre_source.handle,
        preprocessor_path=pre_path,
        width=encoder.width,
        layers=encoder.layers,
        position_limit=encoder.position_limit,
        lower_case=lower_case,
        fingerprint=fingerprint,
        tokenizer_fingerprint=tokenizer_fingerprint,
        tokenizer=tokenizer,
    )


def find_models(
    expert: str, *, preprocessor: str | None = None, hub_address: str | None = None
) -> tuple[ModelSource, ModelSource]:
    """Tell where an expert and its preprocessor are, as `resolve_expert` does; fetches nothing.

    Raises: ExpertError if a word means nothing, or the preprocessor is not known.
    """
    address = _check_hub_address(hub_address or os.environ.get(HUB_ADDRESS_VARIABLE))
    source = find_source(expert, hub_address=address)
    if preprocessor:
        return source, find_source(preprocessor, hub_address=address, role="preprocessor")
    return source, _find_preprocessor(source, hub_address=address)


def find_source(text: str, *, hub_address: str = HUB_ADDRESS, role: str = "expert") -> ModelSource:
    """Tell what a user's word for a model means; asks no network.

    Args:
      text: a short name, handle, address or path.
      hub_address: what stands in for https://tfhub.dev.
      role: "expert" or "preprocessor", for messages.
    Returns: where the model is.
    Raises: ExpertError if the word means nothing, or a model that is known not to work.
    """
    text = text.strip()
    try:
        urllib.parse.urlsplit(text)
    except ValueError as error:
        raise ExpertError(f"{role} {text!r} is not an address ({error}); check it") from error
    if text in EXPERTS:
        return _make_hub_source(EXPERTS[text].handle, hub_address=hub_address)
    if text.startswith("file://"):
        text = urllib.parse.unquote(urllib.parse.urlsplit(text).path)
    handle = _complete_handle(text)
    if handle.startswith(KAGGLE_ADDRESS):
        handle = _canonicalize_kaggle(handle)
        known = _map_kaggle_names().get(handle.lower())
        if known is None or hub_address == HUB_ADDRESS:
            name = _derive_name(handle) if known is None else _derive_name(known)
            _check_version(handle, role=role)
            return ModelSource(name, handle, handle, "hub")
        return _make_hub_source(known, hub_address=hub_address)
    if _is_at(handle, HUB_ADDRESS):
        _check_version(handle, role=role)
        return _make_hub_source(handle, hub_address=hub_address)
    if handle.startswith(("http://", "https://")):
        if hub_address != HUB_ADDRESS and _is_at(handle, hub_address):
            _check_version(handle, role=role)
            public = HUB_ADDRESS + handle.removeprefix(hub_address)
            return ModelSource(_derive_name(public), public, handle, "hub")
        return ModelSource(_derive_name(handle), handle, handle, "hub")
    if "://" in text:
        is_archive = text.startswith("gs://") and text.endswith((".tar", ".tar.gz", ".tgz"))
        kind = "hub" if is_archive else "path" if text.startswith("gs://") else "remote"
        return ModelSource(_derive_name(text), text.rstrip("/"), text.rstrip("/"), kind)
    path = os.path.abspath(os.path.expanduser(text))
    if not text or (not os.path.exists(path) and not _looks_like_path(text)):
        raise ExpertError(_describe_unknown(text, role=role))
    return ModelSource(_derive_name(path), path, path, "path")


def _map_kaggle_names() -> dict[str, str]:
    """Kaggle handle, in lower case → TF-Hub handle, for the models known by both."""
    pairs = {info.kaggle_handle: info.handle for info in EXPERTS.values()} | _KAGGLE_PREPROCESSORS
    return {kaggle.lower(): handle for kaggle, handle in pairs.items()}


def _complete_handle(text: str) -> str:
    """Give handles that were written without a scheme their full form; leave all else alone."""
    if re.match(r"(www\.)?(tfhub\.dev|kaggle\.com)/", text):
        text = f"https://{text}"
    text = re.sub(r"^https?://(www\.)?tfhub\.dev/", f"{HUB_ADDRESS}/", text)
    text = re.sub(r"^https?://(www\.)?kaggle\.com/models/", f"{KAGGLE_ADDRESS}/", text)
    if "://" not in text and not os.path.exists(text):
        if re.fullmatch(r"[\w-]+/[\w-]+/(frameworks/)?tensorflow2/.+", text, re.IGNORECASE):
            return f"{KAGGLE_ADDRESS}/{text}"
        if re.fullmatch(r"(google|tensorflow)/[\w./-]+", text):
            return f"{HUB_ADDRESS}/{text}"
    return text


def _canonicalize_kaggle(handle: str) -> str:
    """Bring Kaggle's long and short form to owner/model/tensorFlow2/variation/version."""
    handle = handle.split("?")[0].rstrip("/")
    handle = re.sub(r"/frameworks/", "/", handle, flags=re.IGNORECASE)
    handle = re.sub(r"/(variations|versions)/", "/", handle, flags=re.IGNORECASE)
    return re.sub(r"/tensorflow2/", "/tensorFlow2/", handle, flags=re.IGNORECASE)


def _make_hub_source(handle: str, *, hub_address: str) -> ModelSource:
    handle = handle.split("?")[0].rstrip("/")
    address = hub_address + handle.removeprefix(HUB_ADDRESS)
    return ModelSource(_derive_name(handle), handle, address, "hub")


def _check_version(handle: str, *, role: str) -> None:
    """Refuse handles that are known not to work, with the one that does."""
    handle = handle.split("?")[0].rstrip("/")
    for info in EXPERTS.values():
        for known in (info.handle, info.kaggle_handle):
            base = known.removesuffix("/2")
            if handle.lower() == base.lower():
                raise ExpertError(f"{role} {handle} names no version; use {known}")
            if handle.lower() == f"{base}/1".lower():
                raise ExpertError(
                    f"{role} {handle} is version 1, which takes a list and returns a tuple; "
                    f"wanted version 2: use {known}"
                )
    path = handle.removeprefix(f"{HUB_ADDRESS}/")
    for pattern, replacement in _TF1_MODULES:
        if re.fullmatch(pattern, path):
            better = re.sub(pattern, replacement, path)
            raise ExpertError(
                f"{role} {handle} is a TF1 hub module; wanted a TF2 SavedModel: use "
                f"{HUB_ADDRESS}/{better}"
            )
    if not re.search(r"/\d+$", handle):
        raise ExpertError(
            f"{role} {handle} names no version; wanted a handle that ends in one, such as "
            f"{handle}/{3 if role == 'preprocessor' else 2}"
        )


def _find_preprocessor(source: ModelSource, *, hub_address: str) -> ModelSource:
    """The preprocessor that belongs to an expert, from the tables or beside it on disk."""
    known = _map_kaggle_names().get(source.handle.lower(), source.handle)
    info = next((info for info in EXPERTS.values() if info.handle == known), None)
    if info is not None:
        if source.handle != known:  # asked at Kaggle, so its preprocessor comes from there too
            kaggle = next(
                name for name, to in _KAGGLE_PREPROCESSORS.items() if to == info.preprocessor_handle
            )
            return find_source(kaggle, hub_address=hub_address, role="preprocessor")
        return find_source(info.preprocessor_handle, hub_address=hub_address, role="preprocessor")
    if _is_at(known, HUB_ADDRESS):
        path = known.removeprefix(f"{HUB_ADDRESS}/")
        for pattern, preprocessor in _PREPROCESSORS:
            if re.fullmatch(pattern, path):
                return _make_hub_source(f"{HUB_ADDRESS}/{preprocessor}", hub_address=hub_address)
    if source.kind in ("path", "remote"):
        parent = source.address.rpartition("/")[0]
        for name in _SIBLING_PREPROCESSORS:
            sibling = f"{parent}/{name}"
            if _has_model(sibling, kind=source.kind):
                return ModelSource(_derive_name(sibling), sibling, sibling, source.kind)
        raise ExpertError(
            f"expert {source.handle}: found no preprocessor beside it (looked for "
            f"{' and '.join(f'{parent}/{name}' for name in _SIBLING_PREPROCESSORS)}); give it with "
            f"--preprocessor, such as {UNCASED_PREPROCESSOR}"
        )
    raise ExpertError(
        f"expert {source.handle}: its preprocessor is not known; give it with --preprocessor, such "
        f"as {UNCASED_PREPROCESSOR} for an uncased English BERT"
    )


def _has_model(path: str, *, kind: str) -> bool:
    if kind == "remote":
        with contextlib.suppress(ExpertError):
            return any(name.endswith("/saved_model.pb") for name in _list_remote(path))
        return False
    if "://" in path:
        import tensorflow as tf

        with contextlib.suppress(tf.errors.OpError):
            return bool(tf.io.gfile.exists(f"{path}/saved_model.pb"))
        return False
    return os.path.isfile(f"{path}/saved_model.pb")


def _fetch(source: ModelSource, *, progress: Progress | None) -> str:
    """Bring a model to where TensorFlow can read it."""
    if source.kind == "hub":
        return hub.resolve(source.address, progress=progress)
    if source.kind == "remote":
        return _copy_remote(source.address, progress=progress)
    return source.address


def _list_remote(folder: str) -> dict[str, str]:
    """Full name → what identifies its content, of the files of a folder on a Beam file system."""
    from apache_beam.io.filesystem import BeamIOError
    from apache_beam.io.filesystems import FileSystems

    try:
        (result,) = FileSystems.match([f"{folder.rstrip('/')}/**"])
    except (BeamIOError, ValueError, OSError) as error:
        raise ExpertError(
            f"cannot list {folder}: {error}; check the address, the credentials, and that Beam's "
            f"extra for it is installed (apache-beam[aws] for s3://)"
        ) from error
    return {
        found.path: f"{found.size_in_bytes}:{found.last_updated_in_seconds}"
        for found in sorted(result.metadata_list, key=lambda found: str(found.path))
    }


def _copy_remote(folder: str, *, progress: Progress | None) -> str:
    """Copy a model from a file system that TensorFlow cannot read into the cache, once.

    The copy is named by what lies there (names, sizes, times), so a model that changes is copied
    again.
    """
    from apache_beam.io.filesystems import FileSystems

    files = _list_remote(folder)
    if not any(name.endswith("/saved_model.pb") for name in files):
        raise ExpertError(
            f"model {folder}: found {len(files)} files, no saved_model.pb; wanted a TF2 SavedModel "
            f"folder, so check the address"
        )
    if "://" in hub.cache_folder():
        raise ExpertError(
            f"model {folder} must be copied to a local cache, but TFHUB_CACHE_DIR is "
            f"{hub.cache_folder()}; set it to a local folder"
        )
    # Some file systems list names without the scheme, so names are cut at the model's own folder.
    main = min((name for name in files if name.endswith("/saved_model.pb")), key=len)
    base = main.removesuffix("saved_model.pb")
    identity = json.dumps([folder, files])
    entry = hub.entry_path(identity)

    def copy(target: str) -> None:
        for number, name in enumerate(files, start=1):
            relative = os.path.normpath(name.removeprefix(base))
            if not name.startswith(base) or relative.startswith(("..", "/")):
                continue
            if progress is not None:
                progress(f"Copying {folder}: file {number} of {len(files)}")
            path = os.path.join(target, relative)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with FileSystems.open(name) as reading, open(path, "wb") as writing:
                while piece := reading.read(4 << 20):
                    writing.write(piece)

    return hub.fill_entry(entry, copy, what=folder, progress=progress)


@contextlib.contextmanager
def _explain_remote_errors(source: ModelSource) -> Iterator[None]:
    """Turn TensorFlow's errors of remote file systems into ours."""
    try:
        yield
    except ExpertError:
        raise
    except Exception as error:
        import tensorflow as tf

        if not isinstance(error, tf.errors.OpError):
            raise
        raise ExpertError(
            f"cannot read {source.handle}: {error.message}\n"
            f"check the address and the credentials, or copy the model to a local folder"
        ) from error


def _check_hub_address(address: str | None) -> str:
    if not address:
        return HUB_ADDRESS
    if not re.match(r"https?://[^/]", address):
        raise ExpertError(
            f"hub address {address!r} is not an http(s) address; wanted one such as {HUB_ADDRESS} "
            f"(flag, or {HUB_ADDRESS_VARIABLE})"
        )
    return address.rstrip("/")


def _is_at(handle: str, address: str) -> bool:
    return handle.startswith(f"{address}/")


def _looks_like_path(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~")) or "\\" in text


def _describe_unknown(text: str, *, role: str) -> str:
    if role == "preprocessor":
        return (
            f"preprocessor {text!r}: no such folder, and not a handle; wanted a folder or a handle "
            f"such as {UNCASED_PREPROCESSOR}"
        )
    near = difflib.get_close_matches(text.lower().replace("-", "_"), EXPERTS, n=1, cutoff=0.5)
    nearest = f"did you mean {near[0]}? " if near else ""
    return (
        f"expert {text!r} is not known, and there is no such folder; {nearest}known are "
        f"{', '.join(EXPERTS)}; or give a handle or a path"
    )


def _derive_name(handle: str) -> str:
    """A short name for a handle or path: a known one, else its last part that is no version."""
    for info in EXPERTS.values():
        if handle.lower() in (info.handle.lower(), info.kaggle_handle.lower()):
            return info.name
    path = urllib.parse.urlsplit(handle).path if "://" in handle else handle
    parts = [part for part in path.split("/") if part]
    while len(parts) > 1 and parts[-1].isdigit():
        parts.pop()
    name = re.sub(r"\.(tar\.gz|tgz|tar)$", "", parts[-1]) if parts else handle
    return re.sub(r"[^\w.-]+", "_", name) or "expert"
