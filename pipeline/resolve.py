"""An expert by any name a user gives: the hub's, a path, or the embedded demo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from transforms.experts import resolve_expert
from transforms.records import Expert

DEMO_NAME = "demo"


def resolve(
    expert: str,
    *,
    preprocessor: str | None = None,
    hub_address: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Expert:
    """Resolve an expert for workers to load; `demo` is built from its package if need be.

    Raises: ExpertError.
    """
    if expert != DEMO_NAME:
        return resolve_expert(
            expert, preprocessor=preprocessor, hub_address=hub_address, progress=progress
        )
    from pipeline import demo

    encoder_path, preprocessor_path = demo.demo_expert()
    found = resolve_expert(encoder_path, preprocessor=preprocessor or preprocessor_path)
    own = found if preprocessor else replace(found, preprocessor_handle=demo.HANDLE)
    return replace(own, name=DEMO_NAME, handle=demo.HANDLE)
