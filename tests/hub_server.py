"""A loopback server that speaks the hub's protocol, and tiny models for it to serve.

`…/HANDLE?tf-hub-format=compressed` is answered with a tar.gz of a folder, as tfhub.dev does, so
that the real `tensorflow_hub` resolver runs against it.
"""

from __future__ import annotations

import atexit
import functools
import io
import shutil
import tarfile
import tempfile
import threading
import urllib.parse
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from transforms.experts import EXPERTS, HUB_ADDRESS, UNCASED_PREPROCESSOR

PREPROCESSOR_PATH = UNCASED_PREPROCESSOR.removeprefix(HUB_ADDRESS)

TINY_VOCABULARY = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *"abcdefghijklmnopqrstuvwxyz0123456789.,!?-'",
    *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"),
    *("the", "heart", "walk", "long", "##ing", "##ed"),
)


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of the server other than the model.

    `kept` is the part of the archive that is sent: with `is_honest` as if it were all, else under
    the length of the whole, as when a connection drops. With `stalls` the rest is held back until
    `HubServer.release`.
    """

    status: int = 200
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    kept: float = 1.0
    is_honest: bool = True
    stalls: bool = False


class HubServer:
    """Serves model folders on 127.0.0.1 under the paths of their handles.

    Use as a context manager. `requests` counts the requests of each path; `stalled` is set when a
    stalling reply has sent its first part.
    """

    def __init__(self, models: Mapping[str, Path]) -> None:
        self.models = dict(models)
        self.requests: Counter[str] = Counter()
        self.stalled = threading.Event()
        self.release = threading.Event()
        self._replies: defaultdict[str, deque[Reply]] = defaultdict(deque)
        self._always: dict[str, Reply] = {}
        self._archives: dict[Path, bytes] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _make_handler(self))
        # A stalled reply must not keep the tests from ending.
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    @classmethod
    def for_experts(cls, expert: Path, preprocessor: Path) -> HubServer:
        """A server of the eight experts, all from one folder, and of their preprocessor."""
        paths = [info.handle.removeprefix(HUB_ADDRESS) for info in EXPERTS.values()]
        return cls({**dict.fromkeys(paths, expert), PREPROCESSOR_PATH: preprocessor})

    @property
    def address(self) -> str:
        """What stands in for https://tfhub.dev."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def reply(self, path: str, *replies: Reply) -> None:
        """Answer the next requests of a path so, one each; then serve the model again."""
        self._replies[path].extend(replies)

    def always_reply(self, path: str, reply: Reply) -> None:
        """Answer every request of a path so."""
        self._always[path] = reply

    def take_reply(self, path: str) -> Reply:
        """Count a request and tell how to answer it."""
        with self._lock:
            self.requests[path] += 1
            waiting = self._replies[path]
            return waiting.popleft() if waiting else self._always.get(path, Reply())

    def read_archive(self, path: str) -> bytes:
        """The tar.gz of a path's model."""
        folder = self.models[path]
        with self._lock:
            if folder not in self._archives:
                self._archives[folder] = pack_folder(folder)
            return self._archives[folder]

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def pack_folder(folder: Path) -> bytes:
    """A folder as the hub packs it: its content at the archive's root."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        archive.add(folder, arcname=".")
    return buffer.getvalue()


def _make_handler(server: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            reply = server.take_reply(url.path)
            wants_archive = urllib.parse.parse_qs(url.query).get("tf-hub-format") == ["compressed"]
            if reply.status == 200 and (url.path not in server.models or not wants_archive):
                reply = Reply(status=404)
            if reply.body is not None:
                body = reply.body
            elif reply.status == 200:
                body = server.read_archive(url.path)
            else:
                body = b"refused"
            sent = body[: int(len(body) * reply.kept)]
            self.send_response(reply.status)
            for name, value in reply.headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(sent if reply.is_honest else body)))
            self.end_headers()
            if reply.stalls:
                self.wfile.write(sent[: len(sent) // 2])
                self.wfile.flush()
                server.stalled.set()
                server.release.wait()
                return
            self.wfile.write(sent)

        def log_message(self, format: str, *args: Any) -> None:
            """Stay silent: a test's own failure says more."""

    return Handler


@functools.cache
def make_tiny_models() -> tuple[Path, Path]:
    """Write an encoder (2 layers, width 8, 32 positions) and its preprocessor, once a process.

    Returns: their folders; read only.
    """
    from transforms.bert_savedmodel import (
        BertConfig,
        build_encoder,
        build_preprocessor,
        random_weights,
    )

    folder = Path(tempfile.mkdtemp(prefix="tiny-models-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    vocab_file = write_vocabulary(folder / "vocab.txt", TINY_VOCABULARY)
    config = BertConfig(
        vocab_size=len(TINY_VOCABULARY),
        width=8,
        layers=2,
        heads=2,
        intermediate=16,
        positions=32,
    )
    expert, preprocessor = folder / "tiny", folder / "preprocess"
    build_encoder(
        expert, config=config, weights=random_weights(config, seed=1), vocab_file=vocab_file
    )
    build_preprocessor(preprocessor, vocab_file=vocab_file)
    return expert, preprocessor


def write_vocabulary(path: Path, pieces: tuple[str, ...]) -> Path:
    """Write a vocabulary file, one piece a line."""
    path.write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    return path
