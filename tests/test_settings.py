"""Settings: precedence, errors that name the nearest key, and a default file that documents every key."""

from __future__ import annotations

import itertools
import re
import tomllib
from importlib import resources

import pytest

from config.application_entities import Right
from config.deidentification import DeidentificationSettings
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
        ("scp = 5\n", ["scp"]),
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
