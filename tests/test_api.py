"""`pipeline.Expert`: the vectors of `run` in Python, and errors that name the text."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import pipeline
from pipeline.api import Expert, compare_parts
from tests import commands
from tests.test_run import expert_flags, make_texts, write_jsonl
from transforms.errors import ConfigError, ExpertError

TEXTS = make_texts(40, seed=3)
PAIRS = make_texts(40, seed=4)


@pytest.fixture(scope="module")
def expert(tiny_expert) -> Expert:
    return Expert(
        tiny_expert.encoder,
        preprocessor=tiny_expert.preprocessor,
        pooling="max",
        normalize=True,
        max_tokens=24,
    )


@pytest.mark.integration
@pytest.mark.parametrize("paired", [False, True], ids=["texts", "pairs"])
def test_encode_gives_the_vectors_and_the_fingerprint_of_run(tmp_path, tiny_expert, expert, paired):
    rows = [
        {"id": str(n), "text": text, "pair": pair}
        for n, (text, pair) in enumerate(zip(TEXTS, PAIRS, strict=True))
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    result = commands.run(
        [
            "--input=rows.jsonl",
            "--id_field=id",
            "--pooling=max",
            "--normalize",
            "--max_tokens=24",
            "--output=out",
            *expert_flags(tiny_expert),
            *(["--pair_field=pair"] if paired else []),
        ],
        folder=tmp_path,
    )
    assert result.code == 0, result.err
    stored = commands.read_rows(tmp_path / "out")
    assert any(row["truncated"] for row in stored.values())
    found = expert.encode(TEXTS, pair=PAIRS if paired else None)
    assert (found.dtype, found.shape) == (np.float32, (40, 64))
    wanted = [stored[str(n)]["embedding"] for n in range(40)]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    manifest = commands.read_manifest(tmp_path / "out")
    assert expert.fingerprint == manifest["fingerprint"]["digest"]


@pytest.mark.integration
def test_encode_one_text_is_a_row_of_many(expert):
    many = expert.encode(TEXTS)
    one = expert.encode(TEXTS[7])
    assert one.shape == (expert.width,)
    np.testing.assert_allclose(one, many[7], atol=1e-5)
    paired = expert.encode(TEXTS[7], pair=PAIRS[7])
    np.testing.assert_allclose(paired, expert.encode(TEXTS, pair=PAIRS)[7], atol=1e-5)
    assert not np.allclose(paired, one)


@pytest.mark.integration
def test_encode_no_texts_gives_no_vectors(expert):
    assert expert.encode([]).shape == (0, 64)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("texts", "pair", "message"),
    [
        (["good", "  "], None, "text 1 cannot be encoded: blank_text"),
        (["a\0b"], None, "text 0 cannot be encoded: nul_byte"),
        (["good", "good", "\ud800"], None, "text 2 cannot be encoded: invalid_utf8"),
        (["good", "\U0001f600"], None, "text 1 cannot be encoded: unknown_tokens_only"),
        (["\u0301", "\u0302"], None, r"text 0 cannot be encoded: no_tokens: .* \(and 1 more\)"),
        (["good", "good"], ["good", ""], "pair 1 cannot be encoded: blank_pair"),
        (["good", "good"], ["good"], "1 pairs for 2 texts"),
    ],
)
def test_encode_text_that_cannot_be_names_its_place_and_reason(expert, texts, pair, message):
    with pytest.raises(ValueError, match=message):
        expert.encode(texts, pair=pair)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("texts", "pair"), [(["good", 7], None), (["good"], "good"), ("good", ["good"]), ([None], None)]
)
def test_encode_what_is_no_text_is_a_type_error(expert, texts, pair):
    with pytest.raises(TypeError, match="string"):
        expert.encode(texts, pair=pair)


@pytest.mark.integration
def test_expert_that_cannot_be_made_is_an_error_at_once(tiny_expert):
    with pytest.raises(ConfigError, match="max_tokens=513"):
        Expert(tiny_expert.encoder, preprocessor=tiny_expert.preprocessor, max_tokens=513)
    with pytest.raises(ConfigError, match="pooling='mena'"):
        Expert(tiny_expert.encoder, preprocessor=tiny_expert.preprocessor, pooling="mena")
    with pytest.raises(ExpertError, match="did you mean wiki_books"):
        Expert("wiki_boks")


def test_compare_parts_names_what_differs():
    one = {"encoder": "a" * 64, "tokenizer": "b" * 64, "pooling": "mean"}
    assert compare_parts(one, recorded=one) == []
    assert compare_parts(one, recorded={**one, "encoder": "c" * 64, "pooling": "max"}) == [
        f"the expert's weights or graph (encoder: {'a' * 12}…, the output's {'c' * 12}…)",
        "pooling (pooling: mean, the output's max)",
    ]


def test_pipeline_exports_expert_but_its_import_stays_light():
    assert pipeline.Expert is Expert
    with pytest.raises(AttributeError, match="no attribute 'Exprt'"):
        _ = pipeline.Exprt
    code = (
        "import sys, pipeline\n"
        "print(sorted({'numpy', 'pyarrow', 'apache_beam', 'tensorflow'} & set(sys.modules)))\n"
        "from pipeline import Expert\n"
        "print(sorted({'tensorflow', 'tensorflow_text', 'tensorflow_hub'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["[]", "[]"]
