"""doctor finds each fault, and names the command that mends it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import doctor
from pipeline.doctor import Finding, Subject
from tests.conftest import SavedExpert
from tests.hub_server import HubServer
from transforms import hub, savedmodel
from transforms.experts import EXPERTS, UNCASED_PREPROCESSOR

SUBJECT = Subject(expert="demo")
WIKI = EXPERTS["wiki_books"].handle


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


# Python and packages


@pytest.mark.parametrize(
    ("version", "state"),
    [((3, 9), "FAILED"), ((3, 10), "ok"), ((3, 13), "ok"), ((3, 14), "FAILED")],
    ids=str,
)
def test_check_python_version_is_held_against_the_range(version, state):
    found = doctor.check_python(version)
    assert found.state == state
    assert (found.mend or "").startswith("python3.13 -m venv" if state == "FAILED" else "")


def test_check_packages_wrong_and_missing_each_get_their_command():
    versions = {"numpy": "2.4.6", "tensorflow": "2.16.1"}
    found = doctor.check_packages(
        ["numpy>=2.1,<3", "tensorflow>=2.21,<2.22", "pyarrow>=25,<26"], version=versions.get
    )
    assert found[0] == Finding("packages", "ok", "numpy 2.4.6")
    assert (found[1].name, found[1].state) == ("package tensorflow", "FAILED")
    assert found[1].found == "2.16.1; wanted <2.22,>=2.21"
    assert found[1].mend == "pip install 'tensorflow<2.22,>=2.21'"
    assert found[2].found.startswith("not installed")
    assert found[2].mend == "pip install 'pyarrow<26,>=25'"


def test_check_packages_of_setup_py_here_are_all_well():
    wanted = doctor.read_requirements()
    assert any(line.startswith("apache-beam") for line in wanted)
    assert only(doctor.check_packages(wanted)).state == "ok"


def test_check_pkg_resources_gone_with_setuptools_82_is_found():
    found = doctor.check_pkg_resources(
        is_there=lambda name: False, version={"setuptools": "82.0.1"}.get
    )
    assert found.state == "FAILED"
    assert "setuptools 82.0.1 has no pkg_resources" in found.found
    assert found.mend == "pip install 'setuptools<81'"
    assert doctor.check_pkg_resources().state == "ok"


@pytest.mark.parametrize(
    ("implementation", "state"), [("c", "ok"), ("python", "warning"), ("missing", "FAILED")]
)
def test_check_crc_implementation_decides(implementation, state):
    found = doctor.check_crc(implementation)
    assert found.state == state
    assert ("google-crc32c" in (found.mend or "")) == (state != "ok")


# Runner


@pytest.mark.parametrize(
    ("runner", "state", "mend"),
    [
        ("DirectRunner", "ok", None),
        ("FlinkRunner", "FAILED", "apt-get install default-jre-headless"),
        ("SparkRunner", "FAILED", "apt-get install default-jre-headless"),
        ("DataflowRunner", "FAILED", "pip install 'apache-beam[gcp]>=2.77,<3'"),
        ("FlinkRuner", "FAILED", "--runner=FlinkRunner"),
    ],
)
def test_check_runner_missing_is_found_with_its_command(runner, state, mend):
    found = doctor.check_runner(
        Subject(expert="demo", runner=runner),
        which=lambda name: None,
        version={"apache-beam": "2.77.0"}.get,
    )
    assert (found.state, found.mend) == (state, mend)


def test_check_runner_flink_with_java_is_well():
    subject = Subject(expert="demo", runner="FlinkRunner")
    found = doctor.check_runner(subject, which=lambda name: f"/bin/{name}")
    assert (found.state, found.mend) == ("ok", None)
    assert "/bin/java" in found.found


def test_check_runner_prism_that_cannot_be_run_is_found(tmp_path):
    binary = tmp_path / "prism"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o644)
    subject = Subject(expert="demo", runner="PrismRunner", prism_location=str(binary))
    found = doctor.check_runner(subject)
    assert (found.state, found.mend) == ("FAILED", f"chmod +x {binary}")
    binary.chmod(0o755)
    assert doctor.check_runner(subject).state == "ok"


# Cache


@pytest.fixture
def cache(tmp_path, monkeypatch, tiny_expert) -> Path:
    """A cache that holds the tiny expert as wiki_books, whole."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(folder))
    monkeypatch.delenv("EXPERTS_HUB_ADDRESS", raising=False)
    shutil.copytree(tiny_expert.encoder, hub.entry_path(WIKI))
    return folder


@pytest.mark.integration
def test_check_cache_whole_entry_is_well(cache):
    found = only(doctor.check_cache(str(cache)))
    assert (found.state, found.found) == ("ok", f"{cache}: writable, 1 whole model(s)")


@pytest.mark.integration
@pytest.mark.parametrize("gone", ["saved_model.pb", "variables/variables.index"])
def test_check_cache_broken_entry_is_found_with_rm(cache, gone):
    entry = hub.entry_path(WIKI)
    Path(entry, gone).unlink()
    found = only(doctor.check_cache(str(cache)))
    assert found.state == "FAILED"
    assert gone in found.found
    assert found.mend == f"rm -r {entry}"


@pytest.mark.integration
def test_check_cache_dead_lock_and_half_download_are_found(cache):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    entry = hub.entry_path(UNCASED_PREPROCESSOR)
    Path(f"{entry}.lock").write_text(f"{socket.gethostname()}.{ended.stdout.strip()}.abc")
    Path(f"{entry}.abc.tmp").mkdir()
    left, locked = doctor.check_cache(str(cache))
    assert (left.state, left.mend) == ("warning", f"rm -r {entry}.abc.tmp")
    assert (locked.state, locked.mend) == ("FAILED", f"rm {entry}.lock")
    assert "that locked it has ended" in locked.found


@pytest.mark.integration
@pytest.mark.parametrize("host", ["here", "elsewhere"])
def test_check_cache_lock_that_may_be_alive_is_a_warning(cache, host):
    entry = hub.entry_path(UNCASED_PREPROCESSOR)
    name = socket.gethostname() if host == "here" else "elsewhere"
    Path(f"{entry}.lock").write_text(f"{name}.{os.getpid()}.abc")
    Path(f"{entry}.abc.tmp").mkdir()
    found = only(doctor.check_cache(str(cache)))
    assert found.state == "warning"
    assert found.mend == (None if host == "here" else f"rm {entry}.lock")


def test_check_cache_that_cannot_be_written_is_found(tmp_path):
    (tmp_path / "file").write_text("")
    found = only(doctor.check_cache(str(tmp_path / "file" / "cache")))
    assert found.state == "FAILED"
    assert "is a file; wanted a folder" in found.found
    assert found.mend is not None
    assert found.mend.startswith("export TFHUB_CACHE_DIR=")


# Expert


@pytest.mark.integration
def test_check_expert_here_and_fitting_is_well(tiny_expert):
    subject = Subject(expert=tiny_expert.encoder, preprocessor=tiny_expert.preprocessor)
    found = only(doctor.check_expert(subject))
    assert found.state == "ok"
    assert "2 layers, 64 wide, its preprocessor fits" in found.found


@pytest.mark.integration
def test_check_expert_of_the_wrong_interface_is_found(tiny_expert):
    subject = Subject(expert=tiny_expert.preprocessor, preprocessor=tiny_expert.preprocessor)
    found = only(doctor.check_expert(subject))
    assert found.state == "FAILED"
    assert "found a preprocessor" in found.found
    assert found.mend is not None
    assert found.mend.startswith("python -m pipeline.experts")


@pytest.mark.integration
def test_check_expert_unknown_name_is_found():
    found = only(doctor.check_expert(Subject(expert="wiki_book")))
    assert (found.state, found.mend) == ("FAILED", "python -m pipeline.experts")
    assert "did you mean wiki_books?" in found.found


@pytest.mark.integration
def test_check_expert_unreachable_is_found(cache):
    shutil.rmtree(hub.entry_path(WIKI))
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        found = doctor.check_expert(Subject(expert="wiki_books", hub_address=address))
    assert [(one.name, one.state) for one in found] == [
        ("expert", "FAILED"), ("preprocessor", "FAILED"),
    ]  # fmt: skip
    assert "does not answer" in found[0].found
    assert found[0].mend is not None
    assert "--expert=FOLDER" in found[0].mend


@pytest.mark.integration
def test_check_expert_reachable_is_not_fetched_unless_asked(cache, tiny_expert: SavedExpert):
    shutil.rmtree(cache)
    with HubServer.for_experts(Path(tiny_expert.encoder), Path(tiny_expert.preprocessor)) as server:
        subject = Subject(expert="wiki_books", hub_address=server.address)
        found = doctor.check_expert(subject)
        assert [one.state for one in found] == ["ok", "ok"]
        assert "the first run fetches it" in found[0].found
        assert not cache.exists()
        asked = Subject(expert="wiki_books", hub_address=server.address, download=True)
        fetched = only(doctor.check_expert(asked))
    assert "here, 2 layers" in fetched.found
    entries = [path for path in cache.iterdir() if len(path.name) == 40]
    assert [savedmodel.find_fault(str(path)) for path in entries] == [None, None]


# Output, disk, memory


def test_check_output_under_a_file_is_found(tmp_path):
    (tmp_path / "file").write_text("")
    found = doctor.check_output(Subject(expert="demo", output=str(tmp_path / "file" / "out")))
    assert (found.state, found.mend) == ("FAILED", "--output=ANOTHER_FOLDER")
    assert "is a file; wanted a folder" in found.found


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_check_output_without_permission_is_found(tmp_path):
    tmp_path.chmod(0o500)
    found = doctor.check_output(Subject(expert="demo", output=str(tmp_path / "out")))
    tmp_path.chmod(0o700)
    assert found.state == "FAILED"
    assert "cannot write" in found.found


def test_find_write_fault_of_a_refusing_disk_says_so(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    fault = doctor.find_write_fault(str(tmp_path / "new"))
    assert fault == f"cannot write in {tmp_path} (Permission denied)"


def test_check_output_with_foreign_files_is_found(tmp_path):
    (tmp_path / "thesis.doc").write_text("mine")
    found = doctor.check_output(Subject(expert="demo", output=str(tmp_path)))
    assert (found.state, found.mend) == ("FAILED", "--output=ANOTHER_FOLDER")
    assert (tmp_path / "thesis.doc").read_text() == "mine"


def test_check_output_new_folder_is_well_and_is_not_made(tmp_path):
    found = doctor.check_output(Subject(expert="demo", output=str(tmp_path / "a" / "b")))
    assert found.state == "ok"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("free", "memory", "states"),
    [
        (10_000, 10_000, ["ok", "ok"]),
        (4_999, 10_000, ["FAILED", "ok"]),
        (10_000, 5_999, ["ok", "FAILED"]),
    ],
    ids=["enough", "disk", "memory"],
)
def test_check_room_is_held_against_the_plan(tmp_path, free, memory, states):
    needs = {"disk_bytes": 5_000, "memory_bytes": 6_000, "output": None}
    subject = Subject(expert="demo", output=str(tmp_path / "out"), needs=needs)
    found = doctor.check_room(subject, free_bytes=lambda path: free, memory_bytes=lambda: memory)
    assert [one.state for one in found] == states
    mends = [one.mend for one in found if one.state == "FAILED"]
    assert all(mend is not None and mend.startswith("--") for mend in mends)
    assert "needed by the plan" in found[0].found


def test_check_room_without_a_plan_states_its_minimum(tmp_path):
    expert = tmp_path / "expert"
    expert.mkdir()
    (expert / "weights").write_bytes(b"0" * 1000)
    (tmp_path / "preprocess").mkdir()
    (tmp_path / "preprocess" / "saved_model.pb").write_bytes(b"")
    found = doctor.check_room(
        Subject(expert=str(expert)),
        free_bytes=lambda path: 2_000_000_000,
        memory_bytes=lambda: 1_500_001_499,
    )
    assert [one.state for one in found] == ["ok", "FAILED"]
    assert "a stated minimum" in found[1].found


# The command


def test_doctor_healthy_machine_exits_0_with_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "check_expert", lambda subject: Finding("expert", "ok", "here"))
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"needs": {"disk_bytes": 1, "memory_bytes": 1}}))
    assert doctor.main([f"--output={tmp_path}/out", f"--plan={plan}", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["ok"] is True
    assert [one["name"] for one in body["checks"]] == [
        "python", "packages", "pkg_resources", "crc32c", "runner", "hub cache", "expert",
        "output", "disk", "memory",
    ]  # fmt: skip


def test_doctor_fault_exits_1_with_the_mending_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "check_expert", lambda subject: Finding("expert", "ok", "here"))
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"needs": {"disk_bytes": 10**18, "memory_bytes": 1}}))
    assert doctor.main([f"--output={tmp_path}/out", f"--plan={plan}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("disk"))
    assert "FAILED" in lines[at]
    assert lines[at + 1].strip().startswith("mend: --output=FOLDER_ON_ANOTHER_DISK")
    assert lines[-1].startswith("1 FAILED")


def test_doctor_check_that_breaks_is_a_finding_and_not_a_crash(monkeypatch):
    def explode(subject):
        raise RuntimeError("undefined symbol")

    monkeypatch.setattr(doctor, "check_expert", explode)
    found = [one for one in doctor.run_checks(SUBJECT) if one.name == "expert"]
    assert only(found).state == "FAILED"
    assert "RuntimeError: undefined symbol" in found[0].found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan=none.json"], "--plan=none.json: wanted what python -m pipeline.plan --json"),
        (["--experts=demo"], "did you mean --expert?"),
        (["--config=none.yaml"], "no such file"),
    ],
    ids=["plan", "typo", "config"],
)
def test_doctor_wrong_flag_exits_2(arguments, message, capsys):
    assert doctor.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_make_subject_config_is_read_and_flags_win(tmp_path):
    config = tmp_path / "job.yaml"
    config.write_text("expert: pubmed\noutput: /data/out\nrunner: FlinkRunner\noverwrite: true\n")
    flags = doctor.make_parser().parse_command([f"--config={config}", "--output=other"])
    found = doctor.make_subject(flags)
    assert (found.expert, found.output, found.runner) == ("pubmed", "other", "FlinkRunner")
    assert found.overwrite
