"""The command line: what scripts rely on — exit codes, JSON, one sentence for each mistake."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from typer.testing import CliRunner

from plugins.missing import Wanted
from scp.contexts import STUDY_ROOT_FIND
from scp.part10 import data_set_offset
from tharsis import PANELS, app

DONE, FAILED, USAGE, UNREACHABLE = 0, 1, 2, 3
NOBODY = "NOBODY@127.0.0.1:1"  # port 1: nobody listens there


def one_sentence(text: str) -> bool:
    """Whether an error is told in one line, which a progress bar that did not get anywhere may precede."""
    lines = [line for line in text.strip().splitlines() if not re.search(r"\d:\d\d:\d\d$", line)]
    return len(lines) == 1 and lines[0].startswith("tharsis: ")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["status", "--data", "nowhere"], FAILED, "no data folder of a node"),
        (["jobs", "list", "--data", "nowhere"], FAILED, "no data folder of a node"),
        (["send", __file__, "--peer", "not a peer"], USAGE, "AET@HOST:PORT"),
        (["send", __file__, "--peer", "A@b:99999"], USAGE, "AET@HOST:PORT"),
        (["find", "--peer", NOBODY], UNREACHABLE, "cannot reach NOBODY"),
        (["find", "NoKeyword=1", "--peer", NOBODY], USAGE, "'NoKeyword' is no DICOM keyword"),
        (["find", "PatientName=山田*", "SpecificCharacterSet=ISO_IR 100", "--peer", NOBODY], USAGE,
         "SpecificCharacterSet=ISO_IR 100 has not all letters of PatientName=山田*; without it, ISO_IR 192 is used"),
        (["find", "StudyDate=昨日", "--peer", NOBODY], USAGE, "StudyDate has letters of ASCII only, got '昨日'"),
        (["similar", "--key", "PatientName=山*", "--key", "SpecificCharacterSet=ISO_IR 6", "--series", "1.2"], USAGE,
         "SpecificCharacterSet=ISO_IR 6 has not all letters of PatientName=山*"),
        (["similar", "--peer", NOBODY], USAGE, "exactly one of"),
        (["similar", "--series", "1.2", "--peer", NOBODY], UNREACHABLE, "cannot reach NOBODY"),
        (["simulate-scan"], USAGE, "where the scan goes"),
        (["simulate-scan", "--phantom", "unicorn", "--out", "x"], USAGE, "there is no phantom 'unicorn'"),
        (["simulate-scan", "--thresholds", "30,20", "--out", "x"], USAGE, "thresholds that ascend"),
        (["reconstruct", "1.2.3", "--data", "nowhere"], FAILED, "1.2.3 is no folder"),
        (["reconstruct", "."], USAGE, "--out"),
        (["reconstruct", ".", "--out", "x"], FAILED, "no instances"),
        (["serve", "--config", "absent.toml"], USAGE, "cannot read the settings file absent.toml"),
        (["serve", "--aet", "FAR_TOO_LONG_A_TITLE"], USAGE, "16"),
        (["jobs", "list", "--state", "foo", "--data", "nowhere"], USAGE, "no job is ever 'foo'"),
        (["demo", "--folder", __file__], FAILED, "is a file"),
        (["serve", "--data", __file__], FAILED, "test_commands.py: it is a file, expected a folder"),
        (["serve", "--port", "abc"], USAGE, "scp.port: expected a whole number from 0 to 65535, got 'abc'"),
        (["serve", "--port", "99999"], USAGE, "scp.port: expected a whole number from 0 to 65535, got '99999'"),
        (["describe", "/nonexist"], USAGE, "/nonexist: no such file or folder"),
        (["describe", __file__], FAILED, "test_commands.py is no DICOM file"),
        (["simulate-scan", "--views", "3", "--rows", "4", "--columns", "4", "--out", "/proc/x"], FAILED, "/proc/x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_told_in_one_sentence(tharsis, tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    told = tharsis(*arguments)
    assert told.returncode == code, told.stderr
    assert said in told.stderr
    assert one_sentence(told.stderr), told.stderr


def test_a_wrong_argument_leaves_no_progress_bar(tharsis, archive, tmp_path):
    wrong_phantom = tharsis("simulate-scan", "--phantom", "plak", "--out", tmp_path / "scan")
    wrong_kind = tharsis("jobs", "queue", "foo", "--data", archive.data)
    for told, said in ((wrong_phantom, "there is no phantom 'plak'"), (wrong_kind, "no plug-in does jobs of kind")):
        assert told.returncode == USAGE
        assert told.stderr.strip().startswith(f"tharsis: {said}"), told.stderr


def test_what_plug_ins_refuse_is_told_as_they_say_it(archive, monkeypatch):
    refused = Wanted((), ("plug-in x: ValueError: there is no [/data/x]",))
    monkeypatch.setattr("plugins.missing.work_of_kind", lambda *_: refused)
    told = CliRunner().invoke(app, ["jobs", "queue", "x", "--data", str(archive.data)])
    assert "there is no [/data/x]" in told.output
    assert isinstance(told.exception, SystemExit)


def test_every_command_teaches():
    runner = CliRunner()
    listed = re.findall(r"^│ ([a-z][a-z-]+) ", runner.invoke(app, ["--help"]).stdout, re.MULTILINE)
    asking = ["send", "find", "similar"]
    expected = ["serve", "demo", "simulate-scan", "import", "reconstruct", "jobs", "status", "check", *asking]
    assert set(expected) <= set(listed)
    for command in listed:
        shown = runner.invoke(app, [command, "--help"])
        assert shown.exit_code == DONE
        assert len(shown.stdout.splitlines()) > 6, command


@pytest.mark.parametrize("command", ["find", "reconstruct", "serve", "simulate-scan", "similar"])
def test_each_example_of_a_command_has_a_line_of_its_own(command):
    shown = CliRunner().invoke(app, [command, "--help"])
    lines = shown.stdout.partition("Example")[2].partition("╭")[0].strip().splitlines()
    assert all(line.count("tharsis ") <= 1 for line in lines)


def test_a_command_is_listed_with_the_first_paragraph_of_its_own_help():
    listed = [each for commands in PANELS.values() for each in commands]
    own = [each.load().help.split("\n\n")[0].replace("\n", " ") for each in listed]
    assert [each.help for each in listed] == own


def test_nothing_large_is_loaded_for_the_list_of_commands():
    large = {"numpy", "pydantic", "pydicom", "pynetdicom", "sqlite_utils", "commands.console"}
    code = "import sys, tharsis; tharsis.app(['--help'], standalone_mode=False); print(*sys.modules, sep='\\n')"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "tharsis demo" in told
    assert large & set(told.splitlines()) == set()


def test_check_finds_everything_in_place_and_prints_the_manual(tharsis, tmp_path):
    findings = json.loads(tharsis("check", "--data", tmp_path / "data", "--json").stdout)
    assert {"package index", "package scp", "package commands"} <= {finding["what"] for finding in findings}
    bad = [finding for finding in findings if not finding["good"]]
    assert all(finding["what"].startswith("port") for finding in bad), bad
    manual = tmp_path / "my.toml"
    manual.write_text(tharsis("check", "--defaults").stdout, encoding="utf-8")
    assert tharsis("check", "--config", manual, "--data", tmp_path / "data", "--json").returncode in (DONE, FAILED)


def test_a_package_that_shadows_ours_is_found(tharsis, tmp_path, monkeypatch):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert json.loads(tharsis("check", "--json").stdout)[1]["good"], "the working folder is not on the path"


def test_import_takes_folders_and_says_what_it_could_not_take(tharsis, make_file, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in (1, 2):
        make_file(number).rename(folder / f"{number}.dcm")
    make_file(3, StudyInstanceUID=None).rename(folder / "3.dcm")
    (folder / "notes.txt").write_text("not DICOM")
    (folder / "empty.dcm").touch()
    told = tharsis("import", folder, "--data", tmp_path / "data", "--json")
    assert told.returncode == FAILED
    result = json.loads(told.stdout)
    assert result["outcomes"] == {"stored": 2, "refused": 1, "not DICOM": 2}
    assert result["refused"][0]["reason"] == "StudyInstanceUID is missing or empty"
    again = tharsis("import", folder / "1.dcm", folder / "2.dcm", "--data", tmp_path / "data", "--json")
    assert again.returncode == DONE
    assert json.loads(again.stdout)["outcomes"] == {"duplicate": 2}
    assert json.loads(tharsis("status", "--data", tmp_path / "data", "--json").stdout)["instances"] == 2


def without_preamble(file, *, meta):
    """Take the preamble from `file`, and the File Meta Information, too, unless `meta`; it goes to a folder `bare`."""
    content = file.read_bytes()[132 if meta else data_set_offset(file) :]
    bare = file.parent / "bare" / file.name
    bare.parent.mkdir(exist_ok=True)
    bare.write_bytes(content)
    return bare


def test_import_takes_files_without_a_preamble(tharsis, make_file, tmp_path):
    files = [without_preamble(make_file(number), meta=number == 1) for number in (1, 2)]
    told = tharsis("import", *files, "--data", tmp_path / "data", "--json")
    assert (told.returncode, json.loads(told.stdout)["outcomes"]) == (DONE, {"stored": 2})
    uids = {pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "data" / "files").rglob("*.dcm")}
    assert uids == {pydicom.dcmread(file, force=True).SOPInstanceUID for file in files}
    described = tharsis("describe", files[0].parent)
    assert described.returncode == FAILED
    assert "have no preamble: bring them in with `tharsis import`" in described.stderr


def test_an_import_of_nothing_has_failed(tharsis, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("not DICOM")
    told = tharsis("import", tmp_path / "in", "--data", tmp_path / "data", "--json")
    assert (told.returncode, json.loads(told.stdout)["outcomes"]) == (FAILED, {"not DICOM": 1})


@pytest.mark.parametrize("command", [["import"], ["import", "--json"], ["send"], ["send", "--commit"], ["commit"]])
def test_an_empty_folder_is_nothing_to_import_send_or_ask_about(tharsis, tmp_path, command):
    for folder in ("one", "other"):
        (tmp_path / folder / "empty").mkdir(parents=True)
    where = ["--data", tmp_path / "data"] if command[0] == "import" else ["--peer", NOBODY]
    told = tharsis(*command, tmp_path / "one", tmp_path / "other", *where)
    assert (told.returncode, told.stdout) == (FAILED, "")
    assert told.stderr == f"tharsis: there is no file in {tmp_path / 'one'} or {tmp_path / 'other'}\n"
    assert not (tmp_path / "data").exists()


@pytest.fixture
def directory(make_file):
    """A DICOMDIR, as a medium has it beside its files."""
    file = make_file(9)
    dataset = pydicom.dcmread(file)
    file.unlink()
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        del dataset[keyword]
    medium = file.parent / "medium"
    medium.mkdir()
    dataset.save_as(medium / "DICOMDIR")
    return medium / "DICOMDIR"


def test_a_dicomdir_in_a_folder_is_left_alone_by_an_import(tharsis, make_file, directory, tmp_path):
    make_file(1).rename(directory.with_name("1.dcm"))
    told = tharsis("import", directory.parent, "--data", tmp_path / "data", "--json")
    assert (told.returncode, json.loads(told.stdout)["outcomes"]) == (DONE, {"stored": 1, "DICOMDIR": 1})
    assert tharsis("import", directory, "--data", tmp_path / "data").returncode == FAILED


@pytest.fixture(scope="module")
def peer(serve_all):
    """A node that several tests send objects of one patient to."""
    return f"THARSIS@127.0.0.1:{serve_all().port}"


@pytest.fixture
def hesitant():
    """A peer that answers instances 1 to 4 with three warnings and a failure, all others with Success."""
    answers = {"1": 0xB000, "2": 0xB006, "3": 0xB007, "4": 0xA700}
    entity = AE("HESITANT")
    entity.add_supported_context(CTImageStorage, ExplicitVRLittleEndian)

    def answer(event):
        return answers.get(event.request.AffectedSOPInstanceUID.rpartition(".")[2], 0x0000)

    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, answer)])
    yield f"HESITANT@127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_what_is_answered_with_a_warning_is_stored_and_no_success(tharsis, hesitant, make_file):
    files = [make_file(number) for number in range(1, 6)]
    told = tharsis("send", *files, "--peer", hesitant, "--json")
    assert told.returncode == FAILED
    result = json.loads(told.stdout)
    assert result["sent"] == 4
    assert result["warned"] == [
        {"file": str(file), "reason": reason} for file, reason in zip(files, ("B000", "B006", "B007"), strict=False)
    ]
    assert result["refused"] == [{"file": str(files[3]), "reason": "A700"}]
    told = tharsis("send", files[2], files[4], "--peer", hesitant)
    assert told.returncode == FAILED
    first, second = told.stdout.splitlines()
    assert first == f"{files[2]}: stored, with the warning B007"
    assert re.fullmatch(r"2 of 2 files stored by HESITANT in \d\.\d s, 1 with a warning", second)


def test_commitment_is_also_asked_of_what_is_stored_with_a_warning(tharsis, peer, make_file):
    assert tharsis("send", make_file(1), "--peer", peer).returncode == DONE
    other = tharsis("send", make_file(1, PatientComments="changed"), "--peer", peer, "--commit", "--json")
    assert other.returncode == FAILED
    result = json.loads(other.stdout)
    assert (result["sent"], result["refused"]) == (1, [])
    assert "B006" in result["warned"][0]["reason"]
    assert [item["safe"] for item in result["commitment"]] == [True]


def test_send_leaves_alone_what_is_no_object_in_a_folder(tharsis, peer, make_file, directory):
    folder = directory.parent
    (folder / "LICENSE").write_text("not DICOM")
    nothing = tharsis("send", folder, "--peer", peer)
    assert nothing.returncode == FAILED
    make_file(1).rename(folder / "1.dcm")
    told = tharsis("send", folder, "--peer", peer)
    assert (told.returncode, "LICENSE" in told.stdout) == (DONE, False)
    assert "1 of 1 files stored" in told.stdout
    assert told.stdout.endswith("; 2 are no DICOM objects to send\n")
    named = tharsis("send", folder / "LICENSE", directory, "--peer", peer)
    assert named.returncode == FAILED
    assert f"{folder / 'LICENSE'}: no DICOM object with" in named.stdout
    assert f"{directory}: a DICOMDIR, which is not sent" in named.stdout


def test_a_truncated_or_unreadable_file_does_not_stop_the_import(tharsis, make_file, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    make_file(1).rename(folder / "b.dcm")
    whole = (folder / "b.dcm").read_bytes()
    cuts = range(140, 520, 7)
    for cut in cuts:
        (folder / f"a{cut}.dcm").write_bytes(whole[:cut])
    told = tharsis("import", folder, "--data", tmp_path / "data", "--json")
    assert json.loads(told.stdout)["outcomes"] == {"stored": 1, "refused": len(cuts)}
    assert all(item["reason"] for item in json.loads(told.stdout)["refused"])


def test_square_brackets_survive_in_messages(tharsis, tmp_path):
    settings = tmp_path / "my.toml"
    settings.write_text("[scp]\nprot = 104\n")
    told = tharsis("check", "--config", settings)
    assert "unknown key 'prot' in [scp]; the nearest is 'port'" in told.stderr
    settings.write_text("[scp]\nport = 'x'\n[jobs]\nworkers = 'y'\n")
    told = tharsis("check", "--config", settings)
    assert "scp.port: expected a whole number from 0 to 65535, got 'x'; jobs.workers: expected a " in told.stderr
    assert "whole number of at least 1, got 'y'" in told.stderr


def test_a_port_that_is_taken_is_told_once(tharsis, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "my.toml").write_text('[scp]\nhost = "127.0.0.1"\n')
        told = tharsis("serve", "--config", tmp_path / "my.toml", "--data", tmp_path / "data", "--port", port)
    assert told.returncode == FAILED
    assert told.stderr == f"tharsis: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_a_broken_catalogue_is_told_in_one_sentence(tharsis, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "catalogue.sqlite").write_bytes(b"no database, but long enough to be taken for one" * 20)
    for command in (["status"], ["serve", "--port", "0"]):
        told = tharsis(*command, "--data", tmp_path / "data")
        assert told.returncode == FAILED
        assert one_sentence(told.stderr), told.stderr


def test_patients_can_be_listed(tharsis, peer, make_file):
    tharsis("send", make_file(1), "--peer", peer)
    (patient,) = json.loads(tharsis("find", "--level", "patient", "--peer", peer, "--json").stdout)
    assert (patient["PatientID"], patient["NumberOfPatientRelatedStudies"]) == ("P1", "1")


def test_send_and_find_over_the_network(tharsis, peer, make_file):
    sent = tharsis("send", make_file(1), make_file(2), make_file(3, StudyInstanceUID=None), "--peer", peer, "--json")
    assert sent.returncode == FAILED
    assert json.loads(sent.stdout)["sent"] == 2
    (refused,) = json.loads(sent.stdout)["refused"]
    assert "A900" in refused["reason"]
    found = tharsis("find", "PatientName=DOE*", "--peer", peer, "--json")
    assert json.loads(found.stdout)[0]["PatientName"] == "Doe^Jane"
    assert "0 found" in tharsis("find", "PatientName=roe*", "--peer", peer).stdout


@pytest.mark.parametrize(
    ("charset", "answered"),
    [
        ([], None),
        (["SpecificCharacterSet"], "ISO_IR 192"),
        (["SpecificCharacterSet="], "ISO_IR 192"),
        (["SpecificCharacterSet=GB18030"], "GB18030"),
        (["SpecificCharacterSet=\\ISO 2022 IR 87"], "\\ISO 2022 IR 87"),
    ],
)
def test_letters_of_a_key_are_not_made_wild_cards(tharsis, start_node, make_file, charset, answered):
    node = start_node()
    names = {"1": "山田^太郎", "2": "Do^Jane"}
    for number, name in names.items():
        node.archive.ingest(make_file(
            int(number), PatientName=name, PatientID=number, StudyInstanceUID=f"1.2.{number}",
            SeriesInstanceUID=f"1.3.{number}", SpecificCharacterSet="ISO_IR 192",
        ))  # fmt: skip
    found = tharsis("find", *charset, "PatientName=山田*", "--peer", f"THARSIS@127.0.0.1:{node.port}", "--json")
    (study,) = json.loads(found.stdout)
    assert (study["PatientName"], study.get("SpecificCharacterSet")) == ("山田^太郎", answered)


def on_terminal(columns, *arguments):
    """Run the command line with a terminal of so many columns, and return what it shows there."""
    ours, its = os.openpty()
    # A dumb terminal has 80 columns, unless both sizes are told.
    environment = {**os.environ, "COLUMNS": str(columns), "LINES": "50", "NO_COLOR": "1", "TERM": "dumb"}
    with subprocess.Popen([sys.executable, "-P", "-m", "tharsis", *map(str, arguments)], stdout=its, env=environment):
        os.close(its)
        shown = b""
        with suppress(OSError):  # the other end is closed
            while part := os.read(ours, 65536):
                shown += part
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")


LONG_UID = "1.2.826.0.1.3680043.9.4245.3115138630835728997848661150714813892"


@pytest.mark.parametrize(
    "command", [["jobs", "list"], ["find"], ["find", "--level", "SERIES", f"StudyInstanceUID={LONG_UID}"]]
)
def test_a_uid_is_whole_in_a_pipe_and_on_a_narrow_terminal(tharsis, serve, make_file, command):
    node = serve()
    peer = ["--peer", f"THARSIS@127.0.0.1:{node.port}"]
    tharsis("send", make_file(1, StudyInstanceUID=LONG_UID, SeriesInstanceUID=LONG_UID), *peer)
    where = ["--data", node.data] if command[0] == "jobs" else peer
    for columns, form in ((80, "(?m)^[A-Za-z]+ +{}$"), (200, "│ {} +│")):
        assert re.search(form.format(re.escape(LONG_UID)), on_terminal(columns, *command, *where)), columns
    narrow = subprocess.run(
        [sys.executable, "-P", "-m", "tharsis", *command, *map(str, where)],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "40"},
    )  # fmt: skip
    assert re.search(rf"│ {re.escape(LONG_UID)} +│", narrow.stdout)
    assert "NumberOf" not in narrow.stdout


def test_similar_needs_the_right_and_then_ranks(tharsis, serve, wait_until, make_file, make_dataset):
    node = serve(settle_time_s=0.1, more='[[application_entities]]\ntitle = "ASKER"\nrights = ["similar"]\n')
    peer = f"THARSIS@127.0.0.1:{node.port}"
    noise = np.random.default_rng(5)
    files = []
    for series in (1, 2, 3):
        image = noise.integers(0, 1000, (8, 8), dtype=np.uint16).tobytes()
        files.append(make_file(series, SeriesInstanceUID=f"1.2.3.{series}", PixelData=image))
    assert tharsis("send", *files, "--peer", peer).returncode == DONE
    wait_until(lambda: node.jobs() == {"done": 6})
    unknown = tharsis("similar", "--reference", "NOPE", "--peer", peer, "--aet", "ASKER")
    assert "the reference names nothing in this archive: 'NOPE'" in unknown.stderr
    refused = tharsis("similar", "--series", "1.2.3.1", "--peer", peer)
    assert refused.returncode == FAILED
    assert "0124" in refused.stderr
    answers = json.loads(tharsis("similar", "--series", "1.2.3.1", "--peer", peer, "--aet", "ASKER", "--json").stdout)
    assert [answer["Rank"] for answer in answers] == ["1", "2"]
    assert {answer["SeriesInstanceUID"] for answer in answers} == {"1.2.3.2", "1.2.3.3"}


@pytest.mark.slow(35)
def test_a_scan_is_reconstructed_offline_from_a_folder_and_from_an_archive(tharsis, tmp_path):
    scan, out, data = tmp_path / "scan", tmp_path / "ct", tmp_path / "data"
    size = ["--views", 24, "--rows", 20, "--columns", 24]
    assert tharsis("simulate-scan", "--phantom", "plaque", *size, "--out", scan).returncode == DONE
    done = tharsis("reconstruct", scan, "--out", out)
    assert done.returncode == DONE, done.stderr
    assert sorted(folder.name for folder in out.iterdir()) == ["bin1", "bin2", "bin3", "bin4"]
    first = pydicom.dcmread(next((out / "bin1").iterdir()))
    assert first.Modality == "CT"
    assert tharsis("import", scan, "--data", data).returncode == DONE
    uid = str(pydicom.dcmread(next(scan.iterdir()), stop_before_pixels=True).SeriesInstanceUID)
    done = tharsis("reconstruct", uid, "--data", data)
    assert done.returncode == DONE, done.stderr
    told = json.loads(tharsis("status", "--data", data, "--json").stdout)
    made = "projections, four energy bins, a segmentation, its report, its picture, and that of the scan's quality"
    assert told["series"] == 9, made
    (next(iter(sorted(scan.iterdir())))).unlink()
    missing = tharsis("reconstruct", scan, "--out", out)
    assert missing.returncode == FAILED
    assert "7 of 8" in missing.stderr


@pytest.mark.slow(130)
def test_the_demo_runs_whole_and_draws(tharsis, tmp_path):
    done = tharsis("demo", "--folder", tmp_path / "demo", "--views", 36, "--columns", 40, timeout=1800)
    assert done.returncode == DONE, done.stderr
    assert "the same neighbours in the same order" in done.stdout
    ranks = re.findall(r"│\s+1 │ (\d\.\d{4}) │ (\S+)", done.stdout)
    assert ranks[0][1] == "Phantom^MouseThighAgain"
    pictures = sorted((tmp_path / "demo" / "pictures").glob("*.png"))
    assert [picture.stem for picture in pictures] == ["neighbours", "projections", "reconstructions", "segments"]
    for picture in pictures:
        assert np.asarray(Image.open(picture).convert("L")).std() > 10, f"{picture.name} shows nothing"
    assert not (tmp_path / "demo" / "data" / "node.json").exists(), "the node was left running"


def test_the_demo_touches_no_folder_that_is_not_its_own(tharsis, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    told = tharsis("demo", "--folder", mine)
    assert told.returncode == FAILED
    assert one_sentence(told.stderr)
    assert Path(mine / "thesis.txt").read_text() == "years of work"


def test_check_tells_of_a_certificate_that_cannot_be_used(tharsis, tmp_path):
    config = tmp_path / "my.toml"
    tls = '[tls]\nenabled = true\nport = 0\ncertificate = "absent.pem"\nkey = "absent.key"\n'
    config.write_text(f"[scp]\nport = 0\n{tls}")
    told = tharsis("check", "--config", config, "--data", tmp_path / "data")
    assert told.returncode == 1
    assert "absent.pem" in told.stdout


def test_similar_at_another_pacs_says_so_in_one_sentence():
    """An ordinary PACS that answers to any title."""
    found = Dataset()
    found.QueryRetrieveLevel, found.StudyInstanceUID, found.SeriesInstanceUID = "SERIES", "1.2", "1.2.3"

    def answer(_event):
        yield 0xFF00, found

    entity = AE()
    entity.add_supported_context(STUDY_ROOT_FIND)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, answer)])
    try:
        peer = f"OTHER@127.0.0.1:{server.socket.getsockname()[1]}"
        result = CliRunner().invoke(app, ["similar", "--reference", "A1", "--peer", peer])
    finally:
        server.shutdown()
    assert (result.exit_code, type(result.exception)) == (FAILED, SystemExit)
    assert "answers without the block 'THARSIS SIMILARITY 1.0'" in result.output
