"""Rules: which series they fit, what they refuse to be, and how they explain themselves."""

from __future__ import annotations

import json
import time
from datetime import datetime

import pytest

from config.settings import SettingsError, load_settings

PACS = {"title": "PACS", "host": "127.0.0.1", "port": 11199}
SERIES = "1.2.826.0.1.3680043.9.7133.2"


def rule(**more):
    return {"name": "rule", "to": ["PACS"], **more}


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({}, True),
        ({"modality": ["CT", "MR"]}, True),
        ({"modality": ["MR"]}, False),
        ({"from": ["SCAN*"]}, True),
        ({"from": ["CT1", "MARS?"]}, False),
        ({"derived": False}, True),
        ({"derived": True}, False),
        ({"match": {"StudyDescription": "He*"}}, True),
        ({"match": {"StudyDescription": "he*"}}, False),  # case-sensitive, as in C-FIND
        ({"match": {"StudyDescription": ["Chest", "Head"]}}, True),
        ({"match": {"PatientName": "doe^j*"}}, True),  # names are not
        ({"match": {"StudyDate": "20240101-20240131"}}, True),
        ({"match": {"StudyDate": "20240103-"}}, False),
        ({"match": {"StudyTime": "09-11"}}, True),
        ({"match": {"ImageType": "PRIMARY"}}, True),
        ({"match": {"ImageType": "LOCALIZER"}}, False),
        ({"match": {"KVP": "120"}}, True),
        ({"match": {"BodyPartExamined": "CHEST"}}, False),  # absent
        ({"match": {"BodyPartExamined": "*"}}, True),  # universal matching
        ({"match": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}}, True),
        ({"match": {"Rows": "08"}}, True),
        ({"modality": ["CT"], "match": {"StudyDescription": "Chest"}}, False),
    ],
)
def test_a_rule_fits(routed, make_file, wanted, fits):
    node = routed([rule(**wanted)], [PACS])
    node.store(make_file(1, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], KVP="120.0"))
    assert len(node.jobs()) == fits


def test_each_destination_and_each_rule_is_a_job_of_its_own(routed, make_file):
    other = {**PACS, "title": "OTHER"}
    rules = [rule(to=["PACS", "OTHER"]), {**rule(), "name": "second"}]
    node = routed(rules, [PACS, other])
    node.store(make_file(1))
    told = [job.parameters for job in node.jobs()]
    assert told == [
        {"destination": "PACS", "rule": "rule"},
        {"destination": "OTHER", "rule": "rule"},
        {"destination": "PACS", "rule": "second"},
    ]


def test_two_rules_to_one_destination_send_once(routed, start_pacs, make_file):
    pacs = start_pacs().open()
    node = routed([rule(commit="never"), {**rule(commit="never"), "name": "second"}], [pacs.entity])
    node.store(make_file(1))
    node.work()
    assert list(pacs.received.values()) == [1]
    assert [job.state for job in node.jobs()] == ["done", "done"]


def test_outside_of_its_window_a_job_waits_and_in_the_middle_it_stops_behind_an_instance(
    routed, start_pacs, make_file
):
    def at(hour):
        return datetime.fromtimestamp(time.time()).replace(hour=hour, minute=0, second=0, microsecond=0).timestamp()

    pacs = start_pacs().open()
    node = routed([rule(commit="never", schedule=["02:00-05:00"])], [pacs.entity])
    node.now = at(12)
    node.store(*(make_file(number) for number in (1, 2, 3)))
    node.work()
    (job,) = node.jobs()
    assert (job.state, job.attempts) == ("queued", 0)
    assert datetime.fromtimestamp(job.not_before).hour == 2
    assert not pacs.received

    def answer(_event):
        node.now = at(5)  # the window closes while the first one is being stored
        return 0

    pacs.answer = answer
    node.now = at(2)
    node.hasten()
    node.work()
    assert len(pacs.received) == 1
    assert [job.state for job in node.jobs()] == ["queued"]
    node.now, pacs.answer = at(3), lambda _event: 0
    node.hasten()
    node.work()
    assert list(pacs.received.values()) == [1, 1, 1]


@pytest.mark.parametrize(
    ("routes", "words"),
    [
        ([{"name": "a"}], "routes.0.to"),
        ([rule(to=[])], "routes.0.to"),
        ([rule(to=["THARSIS"])], "'rule' sends to THARSIS, which is this node itself"),
        ([rule(to=["THARSIS_SIM"])], "which is this node itself"),
        ([rule(to=["NOBODY"])], "NOBODY, which [[application_entities]] does not name"),
        ([rule(to=["DEAF"])], "DEAF, which [[application_entities]] gives no host and port"),
        ([rule(to=["PACS", "PACS"])], "names 'PACS' more than once"),
        ([rule(), rule()], "two rules have the name 'rule'"),
        ([rule(schedule=["whenever"])], "'whenever' is no window"),
        ([rule(commit="maybe")], "expected 'never', 'offered' or 'required'"),
        ([rule(form=["X"])], "unknown key 'form' in [routes]; the nearest is 'from'"),
        ([rule(profile="none")], "the profile 'none', which [[deidentification]] does not name"),
        (rule(), "unknown key 'name'"),
    ],
)
def test_a_mistake_in_a_rule_is_one_sentence(tmp_path, routes, words):
    overrides = {"application_entities": [PACS, {"title": "DEAF"}]}
    file = tmp_path / "settings.toml"
    lines = []
    for each in routes if isinstance(routes, list) else []:
        lines += ["[[routes]]", *(f"{key} = {json.dumps(value)}" for key, value in each.items())]
    file.write_text("\n".join(lines or ["[routes]", 'name = "x"']))
    if not lines:
        words = "expected [[routes]], in double brackets"
    with pytest.raises(SettingsError) as caught:
        load_settings(file, environment={}, overrides=overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("match", "words"),
    [
        ({"StudyDescripton": "x"}, "'StudyDescripton' is no DICOM keyword"),
        ({"ProcedureCodeSequence": "x"}, "ProcedureCodeSequence has no value in an object that could be matched"),
        ({"NumberOfStudyRelatedSeries": "1"}, "has no value in an object"),
        ({"StudyDate": "yesterday"}, "StudyDate: expected YYYYMMDD"),
        ({"SOPClassUID": "1.2.*"}, "a UID takes no wild card"),
    ],
)
def test_an_attribute_that_cannot_be_matched_is_told_before_the_node_runs(routed, match, words):
    with pytest.raises(ValueError, match="routes: 'rule': ") as caught:
        routed([rule(match=match)], [PACS])
    assert words in str(caught.value)


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "routes.toml"
    file.write_text(
        f'[archive]\ndata = "{tmp_path / "routed0"}"\n'
        '[[application_entities]]\ntitle = "PACS"\nhost = "127.0.0.1"\nport = 11199\n'
        '[[routes]]\nname = "ct at night"\nto = ["PACS"]\nmodality = ["CT"]\nschedule = ["22:00-06:00"]\n'
        '[[routes]]\nname = "chest"\nto = ["PACS"]\nmatch = { StudyDescription = "*Chest*" }\nfrom = ["MARS*"]\n'
    )
    return file


@pytest.fixture
def tharsis(monkeypatch):
    """Run the command line in this process: it is started often here."""
    from typer.testing import CliRunner

    from tharsis import app

    monkeypatch.setenv("COLUMNS", "250")
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


def test_the_command_line_shows_rules_destinations_and_reasons(routed, config, make_file, tharsis):
    node = routed([rule(commit="never", retry_hours=0)], [PACS])
    node.store(make_file(1))
    node.work()
    told = tharsis("routes", "--config", config, "--json")
    assert told.exit_code == 0, told.stderr
    shown = json.loads(told.stdout)
    assert [each["name"] for each in shown["rules"]] == ["ct at night", "chest"]
    assert shown["rules"][1]["from"] == ["MARS*"]
    (destination,) = shown["destinations"]
    assert destination["jobs_queued"] + destination["jobs_failed"] == 1
    assert "cannot reach PACS" in destination["last_error"]
    table = tharsis("routes", "--config", config).stdout
    assert "22:00-06:00" in table
    assert "StudyDescription = *Chest*" in table
    assert "PACS: cannot reach PACS" in table
    verdicts = tharsis("routes", "test", SERIES, "--config", config).stdout
    assert "ct at night: is sent to PACS" in verdicts
    assert "chest: does not fit" in verdicts
    assert "✗ StudyDescription = *Chest*: StudyDescription is 'Head'" in verdicts
    assert "✗ from MARS*: from SCANNER" in verdicts
    file = make_file(5, StudyDescription="My Chest")
    told = json.loads(tharsis("routes", "test", file, "--from", "MARS1", "--config", config, "--json").stdout)
    assert [each["fits"] for each in told] == [True, True]
    tried = tharsis("routes", "try", "PACS", "--config", config).stdout
    assert "jobs are due now" in tried
    sent = tharsis("routes", "send", "--series", SERIES, "--to", "PACS", "--config", config)
    assert "1 instances" in sent.stdout
    assert node.jobs()[-1].parameters == {"destination": "PACS", "rule": ""}
    for arguments, code, words in (
        (("send", "--series", SERIES, "--to", "NOBODY"), 2, "entities]] has no NOBODY with host and port"),
        (("try", "NOBODY"), 2, "entities]] has no NOBODY with host and port"),
        (("send", "--series", "1.2.3", "--to", "PACS"), 1, "no series 1.2.3"),
        (("test", "1.2.3"), 1, "no series 1.2.3"),
        (("test", config), 1, "is no DICOM file"),
    ):
        told = tharsis("routes", *arguments, "--config", config)
        assert told.exit_code == code
        assert words in told.stderr


def test_without_rules_the_command_line_says_what_to_write(tharsis, archive):
    told = tharsis("routes", "--data", archive.data).stdout
    assert told.startswith("There are no rules: write [[routes]] into the settings")
