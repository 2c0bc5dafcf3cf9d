"""Text corpora to vectors with TF-Hub BERT experts, on Apache Beam."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline._version import __version__

if TYPE_CHECKING:
    from pipeline.api import Expert

__all__ = ["Expert", "__version__"]


def __getattr__(name: str) -> Any:
    # On first use, so that `import pipeline`, which every command does, stays light.
    if name == "Expert":
        from pipeline.api import Expert

        return Expert
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
