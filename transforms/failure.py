"""How a worker tells the launcher why it stopped the run, on any runner.

A runner turns an exception of a worker into text of its own. The reason therefore also goes to
`_work/failure.json` in the output, where the launcher finds message and exit code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import orjson

from transforms import storage
from transforms.errors import UserError

FAILURE_FILE = "_work/failure.json"


@contextlib.contextmanager
def recorded(output: str) -> Iterator[None]:
    """Write down a UserError that leaves the body, and let it go on."""
    try:
        yield
    except UserError as error:
        record(output, error)
        raise


def record(output: str, error: UserError) -> None:
    """Write an error's message and exit code to the work folder."""
    body = {"exit_code": error.exit_code, "message": str(error)}
    storage.put_bytes(storage.join(output, FAILURE_FILE), orjson.dumps(body))


def read(output: str) -> UserError | None:
    """The error that a worker wrote down, or None."""
    path = storage.join(output, FAILURE_FILE)
    if not storage.exists(path):
        return None
    body = orjson.loads(storage.get_bytes(path))
    error = UserError(body["message"])
    error.exit_code = body["exit_code"]
    return error


def clear(output: str) -> None:
    """Forget the last run's failure."""
    storage.delete_files([storage.join(output, FAILURE_FILE)])
