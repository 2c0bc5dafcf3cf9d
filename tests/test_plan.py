"""plan foretells what a run then does; its arithmetic is held against sums done by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline import doctor, forecast
from pipeline.plan import format_table, make_parser
from pipeline.plan import main as plan_main
from tests import commands
from tests.test_run import expert_flags, make_texts, write_jsonl
from transforms.calibrate import CostModel, Shape
from transforms.errors import ConfigError

MACHINES = Path(__file__).parents[1] / "configs" / "machines.yaml"


def load_table() -> dict:
    return yaml.safe_load(MACHINES.read_text())


# Arithmetic


def test_count_tokens_whole_corpus_counts_and_caps_at_the_limit():
    found = forecast.count_tokens(
        np.array([10, 70, 512], np.int32), np.array([False, False, True]),
        groups=np.array([0, 0, 1], np.int32), max_tokens=100, position_limit=512, rows=3,
    )  # fmt: skip
    assert found.total == forecast.Estimate(180.0, 0.0)
    assert found.longest == 512
    assert found.cut_at == pytest.approx({64: 2 / 3, 128: 1 / 3, 256: 1 / 3, 512: 1 / 3})


def test_count_tokens_text_of_exactly_the_limit_is_not_cut_there():
    found = forecast.count_tokens(
        np.array([64, 128], np.int32), np.array([False, False]),
        groups=np.zeros(2, np.int32), max_tokens=128, position_limit=128, rows=2,
    )  # fmt: skip
    assert found.cut_at == {64: 0.5, 128: 0.0}


def test_count_tokens_of_a_sample_scales_with_an_error():
    lengths = np.array([10, 12, 20, 22], np.int32)
    found = forecast.count_tokens(
        lengths, np.zeros(4, np.bool_), groups=np.array([0, 0, 1, 1], np.int32),
        max_tokens=512, position_limit=512, rows=400,
    )  # fmt: skip
    assert found.total.value == pytest.approx(6400)
    # residuals ∓10 of places with 2 rows: √(200 · 2) / 4 · 400 · √(1 - 4/400)
    assert found.total.error == pytest.approx(2000 * 0.99**0.5)


def test_count_tokens_by_bytes_is_surer_than_by_rows():
    # A token is four bytes everywhere, whether a place has few long rows or many short ones.
    found = forecast.count_tokens(
        np.array([10, 10, 40], np.int32), np.zeros(3, np.bool_),
        groups=np.array([0, 0, 2], np.int32), max_tokens=512, position_limit=512, rows=300,
        sizes=[80.0, 0.0, 160.0], whole=2400.0,
    )  # fmt: skip
    assert found.total.value == pytest.approx(600)
    assert found.total.error == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("rows", "tasks", "row_bytes", "wanted"),
    [(100, 1, 100, 100), (5000, 1, 100, 2500), (40_000, 4, 100, 3333), (100, 1, 1000, 10)],
    ids=["one-chunk", "two-equal", "tasks", "bytes"],
)
def test_size_chunk_takes_rows_tasks_and_bytes_into_account(rows, tasks, row_bytes, wanted):
    found = forecast.size_chunk(
        rows=rows, tasks=tasks, row_bytes=row_bytes, max_rows=4096,
        max_bytes=10_000 if row_bytes == 1000 else 1 << 30,
    )  # fmt: skip
    assert found == wanted


def test_encode_seconds_scales_shapes_to_all_tokens():
    model = CostModel(0.5, 0.001, 0.0)
    found = forecast.encode_seconds(
        [Shape(10, 10), Shape(1, 100)], model=model, tokens_in_shapes=150, tokens=1500
    )
    assert found == pytest.approx(10 * (2 * 0.5 + 0.2))


@pytest.mark.parametrize(
    ("start", "index"), [(2.3, 0.8), (4.6, 1.6), (0.0, 0.24), (100.0, 4.0)], ids=str
)
def test_pass_seconds_go_with_the_start_within_bounds(start, index):
    assert forecast.pass_seconds(start)["index"] == pytest.approx(index)


def test_flops_per_token_of_bert_base_is_the_175_million_of_the_table():
    found = forecast.flops_per_token(layers=12, width=768, length=128)
    assert found == pytest.approx(175e6, rel=0.01)


def test_forecast_machines_bert_base_at_128_is_rate_and_price_by_hand():
    table = forecast.load_machines([("machines", load_table())])
    found = forecast.forecast_machines(
        table, shapes=[Shape(10, 128)], tokens=1_900 * 3600, tokens_in_shapes=1280, layers=12,
        width=768,
    )  # fmt: skip
    row = next(one for one in found if one["machine"] == "n2-standard-8")
    assert row["hours"] == pytest.approx(1 + 4 / 60, abs=1e-3)
    assert row["price_per_hour"] == pytest.approx(8 * 0.056 + 32 * 0.003557, abs=1e-3)
    assert row["price"] == pytest.approx(row["hours"] * row["price_per_hour"], abs=1e-3)
    assert len(found) == 6


def test_forecast_machines_smaller_expert_takes_less_time():
    table = forecast.load_machines([("machines", load_table())])
    hours = [
        forecast.forecast_machines(
            table, shapes=[Shape(1, 100)], tokens=1e9, tokens_in_shapes=100, layers=layers,
            width=width,
        )[0]["hours"]
        for layers, width in ((12, 768), (6, 384))
    ]  # fmt: skip
    assert hours[1] < hours[0] / 7


def test_load_machines_user_prices_win_and_others_stay():
    mine = {"prices": {"vcpu_hour": 1.0, "gpu_hour": {"T4": 9.0}, "date": "2027-01-01"}}
    found = forecast.load_machines([("machines", load_table()), ("mine", mine)])["prices"]
    assert (found["vcpu_hour"], found["gpu_hour"]["T4"], found["date"]) == (1.0, 9.0, "2027-01-01")
    assert found["gpu_hour"]["L4"] == 0.672


@pytest.mark.parametrize("table", [[1], {"price": {}}, {"prices": 3}], ids=str)
def test_load_machines_wrong_form_is_refused_with_the_file(table):
    with pytest.raises(ConfigError, match=r"mine\.yaml: .*wanted a mapping"):
        forecast.load_machines([("mine.yaml", table)])


def test_forecast_machines_without_a_rate_names_the_machine():
    mine = {"machines": {"my-box": {"vcpus": 4, "memory_gb": 8}}}
    table = forecast.load_machines([("machines", load_table()), ("mine", mine)])
    with pytest.raises(ConfigError, match="machine my-box: no usable figure"):
        forecast.forecast_machines(
            table, shapes=[Shape(1, 8)], tokens=8, tokens_in_shapes=8, layers=2, width=64
        )


def test_machines_table_says_date_source_and_basis_of_every_figure():
    table = load_table()
    for part in ("prices", "rates"):
        assert str(table[part]["date"]).startswith("20")
        assert table[part]["source"]
    assert "not measured" in table["rates"]["source"]
    assert set(table["rates"]["tokens_per_second"]) == set(table["machines"])
    assert all(machine["basis"] for machine in table["machines"].values())


# The command


def test_plan_help_lists_own_flags_and_those_of_run(capsys):
    with pytest.raises(SystemExit) as stopped:
        make_parser().parse_command(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--sample_rows", "--prices", "--rates", "--calibration_seconds", "--max_tokens"):
        assert flag in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sample_rows=0"], "0 is less than 1"),
        (["--poling=cls"], "did you mean --pooling?"),
        (["--prices=none.yaml"], "--prices=none.yaml: cannot be read"),
    ],
    ids=["no-rows", "typo", "no-prices"],
)
def test_plan_impossible_flag_exits_2_with_a_message(arguments, message, capsys):
    assert plan_main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def planned(tmp_path_factory, tiny_expert) -> tuple[dict, Path, list[str]]:
    """A plan of a corpus with rejects and repeats, and the flags of the same run."""
    folder = tmp_path_factory.mktemp("planned")
    texts = make_texts(150)
    rows = [{"id": str(n), "text": text, "year": n} for n, text in enumerate(texts)]
    rows += [{"id": "0", "text": "again"}, {"id": "blank", "text": " "}]
    rows.append({"id": "twin", "text": texts[3], "year": 3})
    write_jsonl(folder / "rows.jsonl", rows)
    flags = [
        f"--input={folder}/rows.jsonl", "--id_field=id", "--metadata_fields=year",
        "--rows_per_file=60", *expert_flags(tiny_expert),
    ]  # fmt: skip
    result = commands.Command(
        [*flags, "--json", "--calibration_seconds=1"], folder=folder, module="pipeline.plan"
    ).wait()
    assert result.code == 0, result.err
    return json.loads(result.out), folder, flags


@pytest.mark.integration
def test_plan_then_run_agree_on_rows_tokens_padding_files_and_size(planned):
    found, folder, flags = planned
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".command")}
    assert names == {"rows.jsonl"}  # plan wrote nothing
    result = commands.run([*flags, "--output=out"], folder=folder)
    assert result.code == 0, result.err
    report, manifest = commands.read_report(folder / "out"), commands.read_manifest(folder / "out")
    assert found["rows"] == {"value": report["counts"]["rows_read"], "standard_error": 0.0}
    assert found["sample"]["rejects"] == report["counts"]["rejects"]
    assert found["rows_encoded"] == report["counts"]["vectors"]
    assert found["tokens"]["value"] == report["tokens"]["encoded"]
    assert found["tokens"]["padded"] == report["tokens"]["padded"]
    assert found["output"]["files"] == len(manifest["files"])
    size = sum(file["bytes"] for file in manifest["files"])
    # The footer (schema, fingerprint) is all of the difference in files as small as these.
    assert 0.5 * size < found["output"]["bytes"] < 1.1 * size
    assert found["sample"]["duplicate_text_share"] == pytest.approx(1 / 153, abs=1e-4)
    assert found["sample"]["duplicate_id_share"] == pytest.approx(1 / 153, abs=1e-4)


@pytest.mark.integration
def test_plan_stages_add_up_and_calibration_measured(planned):
    found, _, _ = planned
    seconds = found["seconds"]
    parts = [seconds[name] for name in ("start", "prepare", "index", "encode", "assemble")]
    assert seconds["total"] == pytest.approx(sum(parts), abs=0.05)
    assert seconds["encode"] > seconds["stated"]["encode"]
    assert found["calibration"]["tokens_per_second"] > 0
    assert found["needs"]["memory_bytes"] > 256 << 20
    assert len(found["machines"]) == 6


@pytest.mark.integration
def test_plan_table_labels_what_is_stated_and_what_was_counted(planned):
    text = format_table(planned[0])
    assert "153 (counted); all rows read" in text
    assert "STATED rates, not measured here" in text
    assert "prices of 2026-11-23: Dataflow batch rates" in text
    assert "n2-standard-16" in text
    assert max(len(line) for line in text.splitlines()) < 300


@pytest.mark.integration
def test_plan_json_is_what_doctor_takes_as_plan(planned, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(planned[0]))
    flags = doctor.make_parser().parse_command([f"--plan={path}", "--expert=demo"])
    subject = doctor.make_subject(flags)
    assert subject.needs == planned[0]["needs"]
    found = doctor.check_room(subject, free_bytes=lambda _: 1, memory_bytes=lambda: 1 << 50)
    assert [one.state for one in found] == ["FAILED", "ok"]


@pytest.mark.integration
def test_plan_corpus_without_a_usable_row_exits_2_and_says_why(tmp_path, tiny_expert):
    write_jsonl(tmp_path / "rows.jsonl", [{"text": " "}, {"text": ""}])
    result = commands.Command(
        [f"--input={tmp_path}/rows.jsonl", *expert_flags(tiny_expert)],
        folder=tmp_path, module="pipeline.plan",
    ).wait()  # fmt: skip
    assert result.code == 2
    assert "none of the 2 rows read can be encoded (blank_text" in result.err
