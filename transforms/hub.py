"""Downloads of TF-Hub models: the real `tensorflow_hub` resolver, made safe to rely on.

`tensorflow_hub` 0.16.1 fetches and unpacks; it does not retry, waits 10 to 20 minutes for the
lock of a process that was killed, and takes any folder that is not empty for a whole model
(tensorflow/hub issues #879 and #896). Around it stand here: a lock that dies with its owner, a
check of what lies in the cache, retries, time limits, and errors that name the handle.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import logging
import os
import re
import shutil
import socket
import ssl
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from transforms import savedmodel
from transforms.errors import ExpertError

_LOG = logging.getLogger(__name__)

Progress = Callable[[str], None]

_FORMAT_QUERY = "tf-hub-format"
_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_PROGRESS_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently a download is tried; waits grow by `factor`."""

    attempts: int = 5
    first_seconds: float = 1.0
    factor: float = 2.0
    longest_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"RetryPolicy.attempts={self.attempts}; it must be at least 1")

    def wait_seconds(self, attempt: int) -> float:
        """The wait after failed attempt number `attempt`, from 1."""
        return min(self.longest_seconds, self.first_seconds * self.factor ** (attempt - 1))


def cache_folder() -> str:
    """The folder of cached models: TFHUB_CACHE_DIR, else the one tensorflow_hub would take."""
    return os.environ.get("TFHUB_CACHE_DIR") or os.path.join(tempfile.gettempdir(), "tfhub_modules")


def entry_path(handle: str) -> str:
    """Where the cache keeps a handle's model; the name is tensorflow_hub's own."""
    digest = hashlib.sha1(handle.encode("utf-8"), usedforsecurity=False).hexdigest()
    return os.path.join(cache_folder(), digest)


def resolve(
    handle: str,
    *,
    progress: Progress | None = None,
    retry: RetryPolicy | None = None,
    sleep: Callable[[float], None] = time.sleep,
    timeout_seconds: float = 60.0,
) -> str:
    """Fetch a model by its http(s) or gs:// handle, unless the cache has it whole.

    Processes that ask for one handle together download it once. TFHUB_CACHE_DIR,
    TFHUB_MODEL_LOAD_FORMAT, TFHUB_DOWNLOAD_PROGRESS and the proxy variables mean what they mean
    to tensorflow_hub.

    Args:
      handle: the address of the model, without the `tf-hub-format` query.
      progress: called with a line for the user now and then.
      retry: how to go on after errors that may pass: no network, 429 and 5xx, broken archives.
      sleep: waits between attempts.
      timeout_seconds: how long the server may be silent.
    Returns: a SavedModel folder.
    Raises: ExpertError if the model cannot be had; it names the handle and the remedy.
    """
    say = progress or _LOG.info
    retry = retry or RetryPolicy()
    load_format = os.environ.get("TFHUB_MODEL_LOAD_FORMAT") or "COMPRESSED"
    if load_format not in ("COMPRESSED", "UNCOMPRESSED", "AUTO"):
        raise ExpertError(
            f"TFHUB_MODEL_LOAD_FORMAT={load_format}; use COMPRESSED (an archive, the default) or "
            f"UNCOMPRESSED (read in place from gs://)"
        )
    download = _Download(handle, say, retry, sleep, timeout_seconds)
    if load_format == "UNCOMPRESSED" and handle.startswith(("http://", "https://")):
        return download.run(_resolve_in_place)
    entry = entry_path(handle)
    if "://" in entry:
        return _resolve_remote_cache(entry, download)
    if os.path.isdir(entry) and savedmodel.find_fault(entry) is None:
        return entry
    with _lock_entry(entry, handle=handle, say=say):
        # Another process may have fetched it while this one waited.
        fault = savedmodel.find_fault(entry) if os.path.isdir(entry) else "it is absent"
        if fault is None:
            return entry
        if os.path.lexists(entry):
            _LOG.warning(
                "cached model %s of %s is broken: %s; fetching again", entry, handle, fault
            )
            say(f"The cached copy of {handle} is broken ({fault}); fetching it again.")
            _remove(entry)
        return download.run(_resolve_archive)


def fill_entry(
    entry: str, fill: Callable[[str], None], *, what: str, progress: Progress | None = None
) -> str:
    """Make a cache entry by a function of the caller's, with the same care as a download.

    Args:
      entry: the folder to make, from `entry_path`.
      fill: writes a SavedModel into the folder whose path it gets.
      what: the model's address, for messages.
      progress: called with a line for the user now and then.
    Returns: `entry`, whole.
    Raises: ExpertError if the disk is full or forbidden, or what `fill` wrote is not whole.
    """
    if os.path.isdir(entry) and savedmodel.find_fault(entry) is None:
        return entry
    with _lock_entry(entry, handle=what, say=progress or _LOG.info):
        if os.path.isdir(entry) and savedmodel.find_fault(entry) is None:
            return entry
        if os.path.lexists(entry):
            _remove(entry)
        target = f"{entry}.{uuid.uuid4().hex}.tmp"
        try:
            fill(target)
            fault = savedmodel.find_fault(target)
            if fault is not None:
                raise ExpertError(f"the model at {what} is not whole: {fault}; copy it there again")
            os.rename(target, entry)
        except OSError as error:
            failure = _explain_local(error)
            message = f"{failure.message}\n{failure.remedy}" if failure else f"{error}"
            raise ExpertError(f"cannot copy {what}: {message}") from error
        finally:
            shutil.rmtree(target, ignore_errors=True)
        return entry


class _BrokenArchiveError(Exception):
    """What arrived is not a whole archive of a SavedModel; it may be the connection's fault."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """What an error means to the user, and whether another attempt may help."""

    message: str
    remedy: str
    may_pass: bool = False
    wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Download:
    """One handle's download, with its patience."""

    handle: str
    say: Progress
    retry: RetryPolicy
    sleep: Callable[[float], None]
    timeout_seconds: float

    def run(self, fetch: Callable[[_Download], str]) -> str:
        """Call `fetch` until it succeeds, fails for good, or the attempts are used up."""
        for attempt in range(1, self.retry.attempts + 1):
            found = self._try(fetch)
            if isinstance(found, str):
                return found
            failure, error = found
            if not failure.may_pass or attempt == self.retry.attempts:
                break
            wait_seconds = max(self.retry.wait_seconds(attempt), failure.wait_seconds)
            self.say(
                f"Fetching {self.handle}: {failure.message}; attempt {attempt + 1} of "
                f"{self.retry.attempts} in {wait_seconds:.0f} s"
            )
            self.sleep(wait_seconds)
        tried = f" ({attempt} attempts)" if attempt > 1 else ""
        raise ExpertError(
            f"cannot fetch {self.handle}{tried}: {failure.message}\n"
            f"asked {_describe_request(self.handle, error)}; {failure.remedy}"
        ) from error

    def _try(self, fetch: Callable[[_Download], str]) -> str | tuple[_Failure, Exception]:
        try:
            return fetch(self)
        except Exception as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            failure = _explain(error)
            if failure is None:
                raise
            return failure, error


def _resolve_in_place(download: _Download) -> str:
    """Ask the hub for the model's gs:// folder."""
    return str(_import_tensorflow_hub().resolve(download.handle))


def _resolve_remote_cache(entry: str, download: _Download) -> str:
    """Resolve with a cache on an object store, where no lock dies with its owner.

    tensorflow_hub's own lock file is all there is, so a lock that is held is left alone.
    """
    import tensorflow as tf

    gfile = tf.io.gfile
    try:
        if gfile.exists(entry):
            fault = savedmodel.find_fault(entry)
            if fault is None:
                return entry
            if not gfile.exists(f"{entry}.lock"):
                _LOG.warning("cached model %s is broken: %s; fetching again", entry, fault)
                gfile.rmtree(entry)
    except tf.errors.OpError as error:
        raise ExpertError(
            f"cannot use the model cache {cache_folder()}: {error.message}\n"
            f"set TFHUB_CACHE_DIR to a folder that can be read and written"
        ) from error
    return download.run(_resolve_archive)


def _resolve_archive(download: _Download) -> str:
    """Let tensorflow_hub download and unpack, then look at what it got."""
    hub = _import_tensorflow_hub()
    if download.handle.startswith(("http://", "https://")):
        download.say(f"Fetching {download.handle}")
        path: str = _make_resolver(download)(download.handle)
    else:
        path = str(hub.resolve(download.handle))
    fault = savedmodel.find_fault(path)
    if fault is not None:
        if "://" in path:
            import tensorflow as tf

            tf.io.gfile.rmtree(path)
        else:
            _remove(path)
        raise _BrokenArchiveError(f"the archive holds no whole SavedModel: {fault}")
    return path


def _import_tensorflow_hub() -> Any:
    with warnings.catch_warnings():
        # Its own import of pkg_resources, which is nothing that a user can mend.
        warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
        import tensorflow_hub

    return tensorflow_hub


def _make_resolver(download: _Download) -> Any:
    """tensorflow_hub's resolver of archives, with a time limit and an eye on the length."""
    from tensorflow_hub import compressed_module_resolver

    class Resolver(compressed_module_resolver.HttpCompressedFileResolver):  # type: ignore[misc]
        def __call__(self, handle: str) -> str:
            with contextlib.ExitStack() as self._responses:
                return str(super().__call__(handle))

        def _call_urlopen(self, request: Any) -> _WatchedResponse:
            response = urllib.request.urlopen(
                request, timeout=download.timeout_seconds, context=self._context
            )
            # tensorflow_hub leaves them open.
            self._responses.callback(response.close)
            return _WatchedResponse(response, say=download.say, handle=download.handle)

    return Resolver()


class _WatchedResponse:
    """A response that reports progress, and an early end that urllib passes over in silence."""

    def __init__(self, response: Any, *, say: Progress, handle: str) -> None:
        self._response = response
        self._say = say
        self._handle = handle
        length = response.headers.get("Content-Length")
        self._length = int(length) if length and length.isdigit() else None
        self._bytes = 0
        self._said_at = time.monotonic()

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes. Raises ConnectionError where the body ends too early."""
        data: bytes = self._response.read(size)
        self._bytes += len(data)
        if not data and self._length is not None and self._bytes < self._length:
            raise ConnectionError(
                f"the connection ended after {self._bytes} of {self._length} bytes"
            )
        now = time.monotonic()
        if data and now - self._said_at >= _PROGRESS_SECONDS:
            self._said_at = now
            whole = "" if self._length is None else f" of {self._length / 1e6:.0f}"
            self._say(f"Fetching {self._handle}: {self._bytes / 1e6:.0f}{whole} MB")
        return data


def _describe_request(handle: str, error: Exception) -> str:
    """The address that was asked, and the one that answered where a redirect led elsewhere."""
    if not handle.startswith(("http://", "https://")):
        return handle
    load_format = os.environ.get("TFHUB_MODEL_LOAD_FORMAT") or "COMPRESSED"
    value = "uncompressed" if load_format == "UNCOMPRESSED" else "compressed"
    asked = f"{handle}{'&' if '?' in handle else '?'}{_FORMAT_QUERY}={value}"
    answered = error.url if isinstance(error, urllib.error.HTTPError) else None
    return f"{asked} (answered by {answered})" if answered and answered != asked else asked


def _explain(error: Exception) -> _Failure | None:
    """Turn what the resolver raised into a message and a remedy; None where it says enough."""
    if isinstance(error, urllib.error.HTTPError):
        retry_after = error.headers.get("Retry-After", "") if error.headers else ""
        return _explain_status(error.code, retry_after)
    if isinstance(error, ValueError) and (
        # How tensorflow_hub's UNCOMPRESSED resolver reports a status.
        status := re.search(r"received code (\d+)", str(error))
    ):
        return _explain_status(int(status[1]), "")
    if isinstance(error, _BrokenArchiveError):
        return _explain_archive(str(error), may_pass=True)
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return _Failure(
            f"its certificate is not trusted ({reason.verify_message})",
            "if a proxy of your network signs it, name that authority's file in SSL_CERT_FILE",
        )
    # Not `reason`: a socket may be forbidden too, and that is no matter of the disk.
    local = _explain_local(error)
    if local is not None:
        return local
    network = (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException)
    if isinstance(error, network):
        return _Failure(
            f"no answer ({reason})",
            "check the network, HTTPS_PROXY and EXPERTS_HUB_ADDRESS, or fetch the model elsewhere "
            "and give its folder as --expert",
            may_pass=True,
        )
    if not isinstance(error, (OSError, ValueError, EOFError, zlib.error, tarfile.TarError)):
        return None
    cause = error.__cause__ or error.__context__
    return _explain_archive(
        f"{error}" + (f" ({cause})" if cause is not None else ""),
        may_pass="unexpected end of data" in str(cause),
    )


def _explain_status(status: int, retry_after: str) -> _Failure:
    message = f"HTTP status {status} ({http.client.responses.get(status, 'unknown')})"
    if status in _RETRIED_STATUSES:
        seconds = min(float(retry_after), 120.0) if retry_after.isdigit() else 0.0
        return _Failure(message, "try again later", may_pass=True, wait_seconds=seconds)
    if status in (401, 403, 407):
        remedy = (
            "access is refused: check the proxy and the hub's terms, or fetch the model elsewhere "
            "and give its folder as --expert"
        )
    elif status in (404, 410):
        remedy = "there is no such model: check spelling and version, or EXPERTS_HUB_ADDRESS"
    else:
        remedy = "check the address in a browser, or give a local folder as --expert"
    return _Failure(message, remedy)


def _explain_archive(message: str, *, may_pass: bool) -> _Failure:
    return _Failure(
        f"the answer is not a usable model archive: {message}",
        "wanted a .tar.gz of a SavedModel; open the address in a browser (a login page of a proxy "
        "is a usual cause), or give a local folder as --expert",
        may_pass=may_pass,
    )


def _explain_local(reason: object) -> _Failure | None:
    """Explain a failure of this machine's disk, from Python's or TensorFlow's error, or None."""
    import tensorflow as tf

    number = reason.errno if isinstance(reason, OSError) else None
    is_tensorflow = isinstance(reason, tf.errors.OpError)
    if number in (errno.ENOSPC, errno.EDQUOT) or (
        is_tensorflow
        and (
            isinstance(reason, tf.errors.ResourceExhaustedError)
            or re.search(r"No space left|quota exceeded", str(reason))
        )
    ):
        return _Failure(
            f"no space left in the model cache {cache_folder()}{_describe_free_space()}",
            "free about 1 GB there, or set TFHUB_CACHE_DIR to a folder on another disk",
        )
    if is_tensorflow or number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return _Failure(
            f"cannot write to the model cache {cache_folder()}: {reason}",
            "set TFHUB_CACHE_DIR to a folder that you can write to",
        )
    return None


def _describe_free_space() -> str:
    try:
        return f" ({shutil.disk_usage(cache_folder()).free / 1e6:.0f} MB free)"
    except OSError:
        return ""


@contextlib.contextmanager
def _lock_entry(entry: str, *, handle: str, say: Progress) -> Iterator[None]:
    """Hold a cache entry against other processes and threads for the time of a download.

    The kernel drops the lock when its holder ends, however it ends. Leftovers of earlier holders
    are gone when the block begins. Where the file system has no such locks, tensorflow_hub's own
    lock file is all there is, and nothing is removed.
    """
    with contextlib.ExitStack() as stack:
        try:
            os.makedirs(os.path.dirname(entry), exist_ok=True)
            # Never removed: a process could be waiting on the file that another one removes.
            file = stack.enter_context(open(f"{entry}.flock", "a+b", buffering=0))
            if _lock_file(file, lambda: say(f"Waiting for another process that fetches {handle}")):
                file.seek(0)
                holders = frozenset(file.read().decode("utf-8", "replace").splitlines())
                own = f"{socket.gethostname()}.{os.getpid()}\n".encode()
                file.write(own)
                _remove_leftovers(entry, holders=holders)
                # Only now, so that whoever is killed in between is still known to the next.
                file.truncate(0)
                file.write(own)
        except OSError as error:
            failure = _explain_local(error) or _Failure(
                f"cannot use the model cache {cache_folder()}: {error}",
                "set TFHUB_CACHE_DIR to a folder that you can write to",
            )
            raise ExpertError(
                f"cannot fetch {handle}: {failure.message}\n{failure.remedy}"
            ) from error
        yield


def _lock_file(file: IO[bytes], on_wait: Callable[[], None]) -> bool:
    """Lock an open file, waiting as long as it takes; False where there are no such locks."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        _LOG.info("no file locks in the model cache (%s); going on without", error)
        return False
    return True


def _remove_leftovers(entry: str, *, holders: frozenset[str]) -> None:
    """Remove what killed downloaders left of an entry: their lock file and unpacked parts.

    The caller holds the entry's lock, so its earlier `holders` ("host.pid") have ended or are
    about to: the kernel frees locks before a killed process is a zombie. A process of this machine
    that lives and was no holder is a plain user of tensorflow_hub, and keeps its lock.
    """
    lock = f"{entry}.lock"
    here = socket.gethostname()
    kept_task = None
    try:
        with open(lock, encoding="utf-8", errors="replace") as file:
            host, pid, task = ([*file.read().rsplit(".", 2), "", ""])[:3]
        is_holder = f"{host}.{pid}" in holders
        if host == here and not is_holder and _is_owner_alive(pid, os.path.getmtime(lock)):
            _LOG.warning("process %s of this machine fetches %s; waiting for it", pid, entry)
            return
        _LOG.warning("removing the lock %s of process %s on %s", lock, pid or "?", host or "?")
        if host != here and not is_holder:
            # It may be alive after all: let it finish what it unpacks; the next run tidies up.
            kept_task = task
        os.remove(lock)
    except FileNotFoundError:
        pass
    folder, name = os.path.split(entry)
    for found in os.listdir(folder):
        match = re.fullmatch(re.escape(name) + r"\.(\w+)\.tmp", found)
        if match and match[1] != kept_task:
            _LOG.warning("removing the half-fetched %s", found)
            _remove(os.path.join(folder, found))


def _is_owner_alive(pid: str, locked_at: float) -> bool:
    """Whether the process that wrote a lock is still the one with that number."""
    if not pid.isdigit() or int(pid) in (0, os.getpid()):
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # someone else's process
    state, started_at = _read_process(int(pid))
    # Numbers are used again, most of all in containers; then the process is younger than the lock.
    return state not in ("Z", "X") and (started_at is None or started_at <= locked_at + 2.0)


def _read_process(pid: int) -> tuple[str, float | None]:
    """State and start (in seconds of the epoch) of a process, where /proc tells them."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            # The second field, the name, is in parentheses and may hold anything.
            fields = file.read().rpartition(")")[2].split()
        with open("/proc/stat", encoding="ascii") as file:
            booted = next(int(line.split()[1]) for line in file if line.startswith("btime "))
        return fields[0], booted + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, StopIteration):
        return "", None


def _remove(path: str) -> None:
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.remove(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ExpertError(
            f"cannot remove the broken {path} from the model cache: {error.strerror or error}; "
            f"remove it, or set TFHUB_CACHE_DIR to a folder that you can write to"
        ) from error
