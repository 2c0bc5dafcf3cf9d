"""Text corpora to vectors with TF-Hub BERT experts, on Apache Beam."""

from pipeline._version import __version__

__all__ = ["__version__"]
