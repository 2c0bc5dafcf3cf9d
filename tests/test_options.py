"""Flags and config files."""

from __future__ import annotations

from dataclasses import fields

import pytest

from pipeline.options import RunSettings, make_parser, parse_settings
from transforms.errors import ConfigError
from transforms.records import MetadataField

NEEDED = ["--input=corpus.txt", "--output=out"]


def test_parse_settings_flags_win_over_the_file_and_beam_passes_through(tmp_path):
    config = tmp_path / "job.yaml"
    config.write_text(
        "input: ${config_dir}/x.jsonl\npooling: cls\nnormalize: true\nrows_per_file: 7\n"
        "metadata_fields: [a, 'b:int64']\noutput: o\nexperiments: [one, two]\nrunner: FlinkRunner\n"
    )
    settings, beam_args = parse_settings(
        [f"--config={config}", "--pooling=max", "--runner=DirectRunner", "--no_auth"]
    )
    assert settings.input == (f"{tmp_path}/x.jsonl",)
    assert (settings.pooling, settings.normalize, settings.rows_per_file) == ("max", True, 7)
    assert settings.row_fields().metadata == (MetadataField("a"), MetadataField("b", "int64"))
    assert beam_args == [
        "--experiments=one",
        "--experiments=two",
        "--runner=FlinkRunner",
        "--runner=DirectRunner",
        "--no_auth",
    ]


def test_parse_settings_without_input_is_the_demo():
    settings, _ = parse_settings([])
    assert settings.expert == "demo"
    assert settings.input[0].endswith("demo_corpus.jsonl")


def test_parse_settings_with_input_uses_wiki_books():
    settings, _ = parse_settings(NEEDED)
    assert settings.expert == "wiki_books"
    assert settings.pooling == "mean"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--poolin=mean"], "did you mean --pooling", id="misspelt-flag"),
        pytest.param(["--pooling=men"], "did you mean mean", id="misspelt-choice"),
        pytest.param(["--pooling"], "expected one argument", id="flag-without-value"),
        pytest.param(["--direct_num_worker=2"], "--direct_num_workers", id="misspelt-beam-flag"),
        pytest.param(["--rows_per_file=0"], "at least 1", id="zero-rows-per-file"),
        pytest.param(["--rows_per_file=many"], "whole number", id="not-a-number"),
        pytest.param(["--max_reject_rate=1.5"], "from 0 to 1", id="rate-over-one"),
        pytest.param(["--max_reject_rate=nan"], "from 0 to 1", id="rate-nan"),
        pytest.param(["--normalize=perhaps"], "true or false", id="not-a-bool"),
        pytest.param(["--max_tokens=2"], "at least 3", id="too-few-tokens"),
        pytest.param(["--csv_delimiter=ab"], "one character", id="long-delimiter"),
        pytest.param(["stray"], "unexpected argument", id="stray-word"),
        pytest.param(["--output="], "--output is missing", id="no-output"),
        pytest.param(["--config=absent.yaml"], "no such file", id="no-config"),
    ],
)
def test_parse_settings_bad_flag_is_an_error_that_says_what_is_wanted(arguments, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings([*NEEDED, *arguments])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("poolng: mean", "did you mean pooling", id="misspelt-key"),
        pytest.param("- a", "wanted a mapping", id="not-a-mapping"),
        pytest.param("a: [", "cannot be read", id="not-yaml"),
        pytest.param("pooling: [mean, cls]", "takes one value", id="list-for-one"),
        pytest.param("pooling:", "no value", id="no-value"),
    ],
)
def test_read_config_bad_file_is_an_error(tmp_path, text, message):
    config = tmp_path / "job.yaml"
    config.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse_settings([f"--config={config}", "--input=a", "--output=b"])


def test_row_fields_metadata_named_twice_is_an_error():
    settings, _ = parse_settings([*NEEDED, "--metadata_fields=a,b", "--metadata_fields=a"])
    with pytest.raises(ConfigError, match="names a twice"):
        settings.row_fields()


def test_help_names_every_flag_and_its_default():
    text = make_parser().format_help()
    for one in fields(RunSettings):
        assert f"--{one.name}" in text
        if isinstance(one.default, int) and not isinstance(one.default, bool):
            assert f"default: {one.default}" in text
