"""Load a heavy object once per process, however many threads ask for it at the same time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

Loaded = TypeVar("Loaded")


class ProcessCache(Generic[Loaded]):
    """Key → loaded object; one caller loads, the others wait for it.

    Holds the `capacity` objects used last; whoever still works with an older one keeps it alive.
    (Beam's `Shared` holds weak references, so that an object would be loaded again whenever a
    bundle's DoFns are gone before the next one's come.)
    """

    def __init__(self, *, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity}; wanted at least 1")
        self._capacity = capacity
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, Future[Loaded]] = OrderedDict()

    def get(self, key: Hashable, *, load: Callable[[], Loaded]) -> tuple[Loaded, bool]:
        """Return the object of `key` and whether this very call loaded it.

        Raises: what `load` raised, to the caller that loaded and to those that waited for it. A
          failure is not kept: the next call tries again.
        """
        with self._lock:
            entry = self._entries.get(key)
            ours = entry is None
            if entry is None:
                entry = self._entries[key] = Future()
            self._entries.move_to_end(key)
            self._drop_oldest()
        if not ours:
            return entry.result(), False
        try:
            loaded = load()
        except BaseException as error:
            with self._lock:
                self._entries.pop(key, None)
            entry.set_exception(error)
            raise
        entry.set_result(loaded)
        return loaded, True

    def _drop_oldest(self) -> None:
        # One that is still loading stays, or a second caller would load it again.
        done = [key for key, entry in self._entries.items() if entry.done()]
        for key in done[: max(0, len(self._entries) - self._capacity)]:
            del self._entries[key]
