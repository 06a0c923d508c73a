"""Settings: precedence, errors that name the nearest key, and a default file that documents every key."""

from __future__ import annotations

import itertools
import re
import tomllib
from datetime import date
from importlib import resources

import pytest
from pydantic import BaseModel, ValidationError

from config.application_entities import Right
from config.deidentification import DeidentificationSettings
from config.mistakes import one_sentence
from config.routes import RouteSettings
from config.settings import ApplicationEntitySettings, Settings, SettingsError, load_settings
from config.site_mappings import SiteMapping

DEFAULTS = resources.files("config").joinpath("default.toml").read_text(encoding="utf-8")


def load(text="", tmp_path=None, environment=None, overrides=None):
    file = None
    if text:
        file = tmp_path / "my.toml"
        file.write_text(text, encoding="utf-8")
    return load_settings(file, environment=environment or {}, overrides=overrides)


def test_defaults_alone_are_valid():
    settings = load()
    assert settings.scp.aet == "THARSIS"
    assert settings.scp.similarity_aet == "THARSIS_SIM"
    assert settings.archive.overwrite == "never"
    assert settings.application_entities == ()


def test_command_line_beats_environment_beats_file_beats_default(tmp_path):
    text = "[scp]\nport = 1\nmax_associations = 2\nacse_timeout_s = 3.0\n"
    environment = {"THARSIS_SCP_PORT": "10", "THARSIS_SCP_MAX_ASSOCIATIONS": "20"}
    settings = load(text, tmp_path, environment, {"scp": {"port": 100}})
    assert (settings.scp.port, settings.scp.max_associations, settings.scp.acse_timeout_s) == (100, 20, 3.0)
    assert settings.scp.dimse_timeout_s == load().scp.dimse_timeout_s


def test_environment_takes_numbers_switches_and_lists():
    environment = {
        "THARSIS_SCP_ACCEPT_UNKNOWN": "false",
        "THARSIS_SCP_UNKNOWN_RIGHTS": "find, move",
        "THARSIS_ARCHIVE_SETTLE_TIME_S": "2.5",
        "THARSIS_TEST_DATA": "/elsewhere",
        "THARSIS_PEER": "THARSIS@localhost:11112",
        "PATH": "/bin",
    }
    settings = load(environment=environment)
    assert settings.scp.accept_unknown is False
    assert settings.scp.unknown_rights == {Right.FIND, Right.MOVE}
    assert settings.archive.settle_time_s == 2.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[scp]\nprot = 1\n", ["'prot'", "[scp]", "'port'"]),
        ("[archiv]\ndata = 'x'\n", ["[archiv]", "[archive]"]),
        ("[[application_entities]]\ntitel = 'A'\n", ["'titel'", "'title'"]),
        ("scp = 5\n", ["scp is a section, write [scp] and its keys below it, got scp = 5"]),
        ("routes = 5\n", ["routes is a section, write [[routes]] and its keys below it, got routes = 5"]),
        ("[scp]\nport = 70000\n", ["scp.port"]),
        ("[scp]\nport = 'many'\n", ["scp.port"]),
        ("[scp]\naet = 'A\\\\B'\n", ["scp.aet", "backslash"]),
        ("[scp]\naet = 'THIRTEEN_CHAR'\n", ["scp.aet", "12"]),
        ("[scp]\naet = ''\n", ["scp.aet"]),
        ("[scp]\nunknown_rights = ['print']\n", ["scp.unknown_rights"]),
        ("[archive]\noverwrite = 'sometimes'\n", ["archive.overwrite", "same_source"]),
        ("[archive]\nsettle_time_s = -1\n", ["archive.settle_time_s"]),
        ("[archive]\nsettle_time_s = inf\n", ["archive.settle_time_s"]),
        ("[reconstruct]\ncutoff = 0\n", ["reconstruct.cutoff"]),
        ("[[application_entities]]\ntitle = 'A'\nhost = 'h'\n", ["host and port"]),
        ("[[application_entities]]\ntitle = 'A'\n[[application_entities]]\ntitle = ' A '\n", ["'A'", "more than once"]),
        ("[scp\n", ["not valid TOML"]),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence_that_names_it(text, words, tmp_path):
    with pytest.raises(SettingsError) as caught:
        load(text, tmp_path)
    message = str(caught.value)
    assert "\n" not in message.split("is not valid TOML")[0]
    for word in words:
        assert word in message


RULE = "[[routes]]\nname = 'r'\nto = ['A']\n"
MAPPING = "[[site_mappings]]\nname = 'm'\ncreator = 'C'\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[jobs]\nnice = 25", "jobs.nice: expected a whole number from 0 to 19, got 25"),
        ("[jobs]\nnice = 2.5", "jobs.nice: expected a whole number from 0 to 19, got 2.5"),
        ("[jobs]\nnice = 'low'", "jobs.nice: expected a whole number from 0 to 19, got 'low'"),
        ("[jobs]\nworkers = 0", "jobs.workers: expected a whole number of at least 1, got 0"),
        ("[scp]\nport = 70000", "scp.port: expected a whole number from 0 to 65535, got 70000"),
        ("[scp]\nmax_pdu_bytes = 5", "scp.max_pdu_bytes: expected a whole number from 4096 to 1048576, got 5"),
        ("[scp]\nhost = 5", "scp.host: expected text, got 5"),
        ("[scp]\nacse_timeout_s = 0", "scp.acse_timeout_s: expected a number above 0, got 0"),
        ("[archive]\nsettle_time_s = -1", "archive.settle_time_s: expected a number of at least 0, got -1"),
        ("[archive]\nsettle_time_s = inf", "archive.settle_time_s: expected a finite number of at least 0, got inf"),
        ("[archive]\ndirect_io = 'often'", "archive.direct_io: expected true or false, got 'often'"),
        ("[archive]\ndata = 5", "archive.data: expected a path, got 5"),
        ("[reconstruct]\ncutoff = 1.5", "reconstruct.cutoff: expected a number above 0 and at most 1, got 1.5"),
        ("[corrections]\nscatter_fraction = 1",
         "corrections.scatter_fraction: expected a number of at least 0 and below 1, got 1"),
        ("[reconstruct]\nscheduler = 'here'",
         "reconstruct.scheduler: expected tcp://HOST:PORT, tls://HOST:PORT or nothing, got 'here'"),
        ("[logs]\nlevel = 'LOUD'", "logs.level: expected 'DEBUG', 'INFO', 'WARNING' or 'ERROR', got 'LOUD'"),
        ("[network]\ntransport = 'tin'", "network.transport: expected 'own' or 'pynetdicom', got 'tin'"),
        ("[materials]\nsets = 'k-edge'", "materials.sets: expected a list, got 'k-edge'"),
        ("[materials]\nobjects = []", "materials.objects: expected a list of at least 1 entry, got []"),
        ("[materials]\nobjects = ['slab']", "materials.objects.0: expected 'map' or 'ct', got 'slab'"),
        ("[materials]\ncalibration = { water = [1, 'a'] }",
         "materials.calibration.water.1: expected a number, got 'a'"),
        ("[corrections]\nbeam_hardening_polynomial = [[1.0], 2]",
         "corrections.beam_hardening_polynomial.1: expected a list, got 2"),
        ("[plugins]\nsettings = { mip = 5 }", "plugins.settings.mip: expected a table, got 5"),
        ("[[routes]]\nto = ['A']", "routes.0.name: the key is missing, expected text that is not empty"),
        ("[[routes]]\nname = ''\nto = ['A']", "routes.0.name: expected text that is not empty, got ''"),
        (f"{RULE}match = {{ Modality = 5 }}", "routes.0.match.Modality: expected text or a list, got 5"),
        (f"{RULE}derived = 'no idea'", "routes.0.derived: expected true or false, got 'no idea'"),
        (f"{RULE}from = 'B'", "routes.0.from: expected a list, got 'B'"),
        ("[[routes]]\nname = 'r'\nto = ['A\\B']",
         "routes.0.to.0: an AE title has 1 to 16 ASCII characters and no backslash, got 'A\\\\B'"),
        ("[routes]\nname = 'r'", "routes: expected [[routes]], in double brackets, got {'name': 'r'}"),
        (f"{MAPPING}angle = 5", "site_mappings.0.angle: expected a table, got 5"),
        (f"{MAPPING}angle = {{ elemet = 'x', value = 1.0, unit = 'deg' }}",
         "site_mappings.0.angle.elemet: there is no such key; the nearest is 'element'"),
        (f"{MAPPING}angle = {{ value = 1.0 }}", "site_mappings.0.angle.unit: the key is missing, expected '', 'deg', "),
        (f"{MAPPING}matrix = {{ element = '(0029,xx10)', creator = 'C', axes = ['x', 'y'], unit = 'mm' }}",
         "site_mappings.0.matrix.axes: expected a list of 3 entries, got ['x', 'y']"),
        ("[[deidentification]]\nname = 'a b'",
         "deidentification.0.name: expected up to 32 letters, digits, dots, hyphens and underscores that begin with a "
         "letter or a digit, got 'a b'"),
        ("[scp]\nhost = 5\nport = -1",
         "scp.host: expected text, got 5; scp.port: expected a whole number from 0 to 65535, got -1"),
    ],
)
def test_a_value_out_of_its_limits_is_told_with_key_value_and_what_is_allowed(text, sentence, tmp_path):
    with pytest.raises(SettingsError) as caught:
        load(text, tmp_path)
    assert str(caught.value)[: len(sentence)] == sentence
    if not sentence.endswith(", "):
        assert str(caught.value) == sentence


SECRETS = ("orthanc.password", "orthanc.key")


@pytest.mark.parametrize("name", ["password", "key"])
def test_a_secret_is_not_repeated_in_a_mistake(name, tmp_path):
    with pytest.raises(SettingsError) as told:
        load(f"[orthanc]\n{name} = 90125", tmp_path)
    assert str(told.value) == f"orthanc.{name}: expected text"
    assert "90125" not in repr(load(f'[orthanc]\n{name} = "90125 is long enough"', tmp_path).orthanc)


def test_every_limit_of_the_settings_is_told_in_our_own_words():
    """A value that fits no key: what is said of it is ours, whichever section and kind it is of."""
    for section, field in Settings.model_fields.items():
        if section not in (table := tomllib.loads(DEFAULTS)):
            continue
        for key in table[section]:
            with pytest.raises(SettingsError) as caught:
                load(overrides={section: {key: object}})
            words = str(caught.value)
            assert words.startswith(f"{section}.{key}: expected "), (words, field)
            assert words.endswith(", got <class 'object'>") != (f"{section}.{key}" in SECRETS), words


class Own(BaseModel, extra="forbid"):
    """As a plug-in might describe its settings."""

    since: date
    names: list[str] = []
    inner: list[Own] = []


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({}, "since: the key is missing"),
        ({"since": "today"}, "since: expected a valid date or datetime, input is too short, got 'today'"),
        ({"since": 0.5}, "since: Datetimes provided to dates should have zero time - e.g. be exact dates, got 0.5"),
        ({"since": "2026-01-01", "names": [1]}, "names.0: expected text, got 1"),
        ({"since": "2026-01-01", "inner": [{"since": "2026-01-01", "nmes": 1}]},
         "inner.0.nmes: there is no such key; the nearest is 'names'"),
        (5, "expected a table, got 5"),
    ],
)
def test_settings_of_a_plug_in_are_told_alike(told, sentence):
    with pytest.raises(ValidationError) as caught:
        Own.model_validate(told)
    assert one_sentence(caught.value, Own) == sentence


def test_an_unknown_variable_and_an_unknown_override_are_errors():
    with pytest.raises(SettingsError, match=r"THARSIS_SCP_PRT.*THARSIS_SCP_PORT"):
        load(environment={"THARSIS_SCP_PRT": "1"})
    with pytest.raises(SettingsError, match=r"'prot'.*'port'"):
        load(overrides={"scp": {"prot": 1}})


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(SettingsError, match=r"absent\.toml"):
        load_settings(tmp_path / "absent.toml", environment={})


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load().scp.port = 1


def test_a_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(load(overrides={"archive": {"data": "~/tharsis"}}).archive.data) == "/home/somebody/tharsis"


def test_entity_table_knows_peers_rights_and_destinations(tmp_path):
    text = (
        "[scp]\naccept_unknown = true\nunknown_rights = ['store']\n"
        "[[application_entities]]\ntitle = 'WS'\nhost = '192.0.2.1'\nport = 104\nrights = ['find', 'similar']\n"
        "[[application_entities]]\ntitle = 'MODALITY'\n"
    )
    table = load(text, tmp_path).entity_table()
    workstation = table.caller("WS  ")
    assert workstation is not None
    assert workstation.is_destination
    assert workstation.rights == {Right.FIND, Right.SIMILAR}
    assert table.caller("MODALITY").rights == frozenset()
    assert not table.caller("MODALITY").is_destination
    assert table.caller("ws").rights == {Right.STORE}  # AE titles are case-sensitive: somebody else
    assert table.get("OTHER") is None


def test_unknown_callers_are_refused_when_the_settings_say_so():
    table = load(overrides={"scp": {"accept_unknown": False}}).entity_table()
    assert table.caller("ANYBODY") is None


def test_the_default_file_has_every_key_and_no_other():
    told = tomllib.loads(DEFAULTS)
    sections = {name: field.annotation for name, field in Settings.model_fields.items()}
    for several in ("application_entities", "ae_titles", "deidentification", "routes", "site_mappings"):
        del sections[several]
    assert {section: set(keys) for section, keys in told.items()} == {
        section: set(model.model_fields) for section, model in sections.items()
    }
    models = (ApplicationEntitySettings, DeidentificationSettings, SiteMapping)
    for field in itertools.chain(RouteSettings.keys(), *(model.model_fields for model in models)):
        assert re.search(rf"^# {field} = ", DEFAULTS, re.MULTILINE), field


def test_every_key_of_the_default_file_has_a_comment():
    keys = [line for line in DEFAULTS.splitlines() if re.match(r"(# )?[a-z_]+ = ", line)]
    assert len(keys) > 30
    peers = {"# host", "# rights"}  # the block of peers is explained above it
    bare = [line for line in keys if not re.search(r" # .{10,}", line[2:]) and line.split(" = ")[0] not in peers]
    allowed = {'level = "INFO"                    # DEBUG, INFO, WARNING, ERROR'}
    assert [line for line in bare if line not in allowed and not line.startswith("# ")] == []


@pytest.mark.parametrize(("processors", "told", "count"), [(1, 0, 2), (2, 0, 4), (16, 0, 4), (16, 1, 1), (1, 9, 9)])
def test_how_many_processes_share_the_ports(monkeypatch, processors, told, count):
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: set(range(processors)), raising=False)
    network = load_settings(environment={}, overrides={"network": {"acceptors": told}}).network
    assert network.acceptor_names() == ["network", *(f"network-{number}" for number in range(2, count + 1))]
