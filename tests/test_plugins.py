"""Loading, ordering and asking plug-ins, their own settings, and what the watch knows of them; all in this process."""

from __future__ import annotations

import json
import re
from importlib import metadata
from types import MappingProxyType, ModuleType

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from commands.plugin_facts import _fields
from config import plugins as choices
from config.plugins import ALWAYS, Choice, ChoiceError, chosen, read_choice, write_choice
from config.settings import SettingsError, load_settings
from index import jobs, plugin_troubles
from plugins import found as finding
from plugins import manager
from plugins.aftermath import settle
from plugins.found import Found
from plugins.hookspecs import hookimpl
from plugins.node import Cancelled, CannotProceed, Interrupted, Work
from plugins.troubles import Troubles
from plugins.watch import Doing, Note, Watch, note_path, read_note
from plugins.worker import Worker


def plugin(name: str, **hooks) -> Found:
    """A plug-in of a package, with these hooks."""
    module = ModuleType(name)
    for hook, function in hooks.items():
        function.__name__ = hook
        setattr(module, hook, hookimpl(function))
    return Found(name, f"package-of-{name}", "1", name, lambda: module)


def told(**plugins):
    overrides = {"plugins": plugins, "jobs": {"max_attempts": 3, "retry_delay_s": 0.0}}
    return load_settings(environment={}, overrides=overrides)


def loaded(*added: Found, watch: Watch | None = None, **settings) -> manager.Plugins:
    plugins = manager.Plugins(told(**settings), watch or Watch())
    for each in added:
        plugins.add(each)
    return plugins


class Width(BaseModel):
    model_config = ConfigDict(extra="forbid")

    width: int = Field(3, ge=1)


class Unreadable(BaseModel):
    width: int = 3

    @field_validator("width")
    @classmethod
    def _known(cls, value):
        return {3: 3}[value]


# What runs, and in which order


def test_the_command_line_goes_before_the_settings_for_what_it_names(tmp_path):
    settings = told(disabled=["materials", "embedding"], order=["scrubber"]).plugins
    write_choice(tmp_path, Choice().enable(["materials"]).disable(["indexing"]))
    merged = chosen(settings, read_choice(tmp_path))
    assert (merged.disabled, merged.order) == (("embedding", "indexing"), ("scrubber",))
    write_choice(tmp_path, Choice(order=("asked",)).disable(["materials"]).enable(["materials"]))
    assert read_choice(tmp_path) == Choice((), ("materials",), ("asked",))
    assert chosen(settings, read_choice(tmp_path)).order == ("asked",)


def test_whatever_is_written_can_be_read_and_is_noticed(tmp_path):
    assert read_choice(tmp_path) == Choice()
    before = choices.mark(tmp_path)
    odd = Choice(disabled=('qu"ote', "back\\slash", "µ"))
    write_choice(tmp_path, odd)
    assert read_choice(tmp_path) == odd
    assert choices.mark(tmp_path) != before


@pytest.mark.parametrize("text", ["disabled = 'mip'", "disabled = [1]", "enbled = []", "disabled = ["])
def test_a_choice_that_cannot_be_read_is_one_sentence(tmp_path, text):
    (tmp_path / choices.CHOICE_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(ChoiceError, match=r"plugins\.toml"):
        read_choice(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"disabled": ["asked"]}, "'asked' cannot be disabled: it answers similarity queries"),
        ({"disabled": ["mip", "mip"]}, "names 'mip' more than once"),
        ({"order": "mip"}, "plugins.order: expected a list, got 'mip'"),
        ({"settings": {"mip": 3}}, "plugins.settings.mip: expected a table, got 3"),
        ({"hook_s": 0}, "plugins.hook_s"),
    ],
)
def test_a_mistake_in_the_settings_is_one_sentence(wrong, words):
    with pytest.raises(SettingsError, match=words):
        told(**wrong)


def test_first_those_that_are_named_then_the_built_in_ones_then_packages_by_name(monkeypatch):
    def entry_points(group):
        return [metadata.EntryPoint(name, "json", group) for name in ("zeta", "alpha", "scrubber")]

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    names = [each.name for each in finding.in_order(finding.found(), ["zeta", "materials", "gone"])]
    assert names[:3] == ["zeta", "materials", "reconstruction"]
    assert names[-2:] == ["alpha", "scrubber"]
    (second,) = [each for each in finding.found() if each.name == "scrubber" and not each.built_in]
    assert second.problem == "tharsis has a plug-in of the same name"
    unwanted = [name for name in manager.BUILT_IN if name not in (*ALWAYS, "scrubber")]
    plugins = manager.load_plugins(settings=told(disabled=[*unwanted, "zeta"], order=["scrubber"]))
    assert [name for name, _ in plugins.list_name_plugin()] == ["scrubber", "asked", "routing", "orthanc", "alpha"]
    assert plugins.disabled == (*unwanted, "zeta")
    (slip,) = finding.unknown_names(told(order=["scruber"]).plugins, finding.found())
    assert slip == "plugins.order names 'scruber', but no such plug-in is installed; the nearest is 'scrubber'"


def test_asked_in_the_order_of_loading_whatever_they_want():
    first, second = plugin("first", segmenters=lambda: ["a"]), plugin("second", segmenters=lambda: ["b"])
    second.load().segmenters = hookimpl(lambda: ["b"], tryfirst=True)
    plugins = loaded(first, second)
    assert [name for name, _ in manager.ask_each(plugins, "segmenters", settings=None)] == ["first", "second"]


# Settings of their own


def test_hooks_and_jobs_get_the_settings_of_their_own(archive, make_file):
    seen = []
    wide = plugin(
        "wide",
        own_settings=lambda: Width,
        jobs_for_series=lambda series, own: [Work("wide", series.uid, {"width": own.width})],
        job_functions=lambda: {"wide": lambda task: seen.append((task.own.width, task.job.parameters))},
    )
    raw = plugin("raw", worker_started=lambda own: seen.append(own))
    archive.ingest(make_file(1))
    plugins = loaded(wide, raw, settings={"wide": {"width": 5}, "raw": {"any": [1]}})
    Worker(archive, plugins.settings, "w", plugins).run_until_idle()
    list(manager.ask_each(plugins, "worker_started", archive=archive, settings=None))
    assert seen == [(5, {"width": 5}), {"any": [1]}]


@pytest.mark.parametrize(
    ("hooks", "own", "why"),
    [
        ({"own_settings": lambda: Width}, {"widht": 5},
         r"\[plugins.settings.x\] widht: there is no such key; the nearest is 'width'; its k"),
        ({"own_settings": lambda: Width}, {"width": 0},
         r"\[plugins.settings.x\] width: expected a whole number of at least 1, got 0; its k"),
        ({"own_settings": lambda: Unreadable}, {"width": 4}, r"\[plugins\.settings\.x\] cannot be read: KeyError: 4"),
        ({"own_settings": lambda: 7}, {}, "own_settings: expected a class of pydantic models, got 7"),
        ({"own_settings": lambda: 1 / 0}, {}, "own_settings: ZeroDivisionError"),
        ({"jobs_for_siries": lambda: None}, {}, "cannot be imported: PluginValidationError"),
        ({"jobs_for_series": lambda patient: None}, {}, "cannot be imported: PluginValidationError"),
    ],
)
def test_who_does_not_keep_to_the_contract_is_left_out_in_a_sentence(hooks, own, why):
    plugins = loaded(plugin("x", **hooks), plugin("good"), settings={"x": own})
    assert [name for name, _ in plugins.list_name_plugin()] == ["good"]
    assert re.match(why, plugins.left_out["x"]), plugins.left_out


def test_a_default_that_is_made_of_other_settings_keeps_nobody_from_the_list():
    class Sizes(BaseModel):
        width: int = 3
        height: int = Field(default_factory=lambda told: 2 * told["width"], description="voxels")

    assert _fields(Sizes) == {
        "width": "int, default 3", "height": "int, default made when the settings are read: voxels"
    }  # fmt: skip


def test_who_wraps_a_hook_is_left_out():
    module = ModuleType("wrapper")

    @hookimpl(wrapper=True)
    def jobs_for_series(series):
        return (yield)

    module.jobs_for_series = jobs_for_series
    plugins = loaded(Found("wrapper", "p", "1", "wrapper", lambda: module))
    assert plugins.left_out == {"wrapper": "wraps jobs_for_series: a plug-in does not see the answers of others"}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("segment", "expected a list of Work, got 'segment'"),
        ((each for each in ()), "expected a list of Work, got <generator"),
        ([Work("k", 3)], "expected Work of a kind and a subject"),
        ([Work("k", "1", {"x": object()})], "the parameters of 'k' are no JSON"),
        ([Work("k", "1", {"x": float("nan")})], "the parameters of 'k' are no JSON"),
        ([Work("k", "name-\udcff")], "kind or subject of Work(kind='k'"),
        ([Work("series_stable", "1")], "jobs of kind 'series_stable' are asked for by the node itself"),
    ],
)
def test_an_answer_that_is_none_keeps_no_work_of_others_from_the_queue(archive, make_file, answer, why):
    done = []
    good = plugin(
        "good",
        jobs_for_series=lambda series: [Work("work", series.uid)],
        job_functions=lambda: {"work": lambda task: done.append(1)},
    )
    plugins = loaded(plugin("odd", jobs_for_series=lambda: answer), good)
    archive.ingest(make_file(1))
    Worker(archive, plugins.settings, "w", plugins).run_until_idle()
    (failed,) = archive.jobs.recent(states=("failed",))
    assert done == [1]
    assert failed.error.startswith(f"plug-in odd: jobs_for_series: {why}")


@pytest.mark.parametrize("parameters", [{1: "one", "two": 2}, MappingProxyType({"1": "one", "two": 2})])
def test_parameters_that_json_can_tell_reach_the_job(archive, make_file, parameters):
    given = []
    plugins = loaded(
        plugin(
            "odd",
            jobs_for_series=lambda series: [Work("work", series.uid, parameters)],
            job_functions=lambda: {"work": lambda task: given.append(task.job.parameters)},
        )
    )
    archive.ingest(make_file(1))
    Worker(archive, plugins.settings, "w", plugins).run_until_idle()
    assert given == [{"1": "one", "two": 2}]


class Mute(Exception):
    def __str__(self):
        raise IndexError


@pytest.mark.parametrize("error", [Mute(), ValueError("no file b\udcff.dcm"), Interrupted(), Cancelled()])
@pytest.mark.parametrize("place", ["jobs_for_series", "job"])
def test_whatever_is_raised_fails_that_job_alone_and_for_good_in_the_end(archive, make_file, error, place):
    def fail(*_):
        raise error

    done, hook = [], place == "jobs_for_series"
    odd = plugin(
        "odd",
        jobs_for_series=lambda series: fail() if hook else [Work("odd", series.uid)],
        job_functions=lambda: {"odd": fail},
    )
    good = plugin(
        "good",
        jobs_for_series=lambda series: [Work("work", series.uid)],
        job_functions=lambda: {"work": lambda task: done.append(1)},
    )
    plugins = loaded(odd, good)
    archive.ingest(make_file(1))
    worker = Worker(archive, plugins.settings, "w", plugins)
    runs = 0
    while worker.run_one() and runs < 10:
        runs += 1
    (failed,) = archive.jobs.recent(states=("failed",))
    assert done == [1]
    assert failed.error.startswith("plug-in odd: ")
    assert type(error).__name__ in failed.error


@pytest.mark.parametrize(
    "answer", [{"series_stable": print}, {"storage_commitment": print}, {"": print}, {"x": 3}, ["x"]]
)
def test_kinds_that_cannot_be_done_leave_the_plug_in_out(answer):
    plugins = loaded(plugin("odd", job_functions=lambda: answer), plugin("good", job_functions=lambda: {"x": print}))
    assert set(manager.job_functions(plugins)) == {"x"}
    assert plugins.left_out["odd"].startswith("job_functions: ")


# The watch


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_who_is_silent_for_too_long_is_ended_and_noted(tmp_path):
    clock, ended = Clock(), []
    note = Note(note_path(tmp_path, "worker-1"))
    watch = Watch(note, ended.append, clock=clock)
    with watch.over("mip", "job mip", 10.0, job=(7, 3.5, "1.2.3")):
        clock.now += 9.0
        watch.look()
        watch.sign_of_life()
        clock.now += 9.0
        watch.look()
        assert not ended
        with watch.over("other", "segmenters", 2.0):
            clock.now += 1.5
            watch.look()
        clock.now += 9.0
        watch.look()
        assert not ended, "the time of a part is not held against the whole"
        clock.now += 2.0
        watch.look()
        (doing,) = ended
        assert (doing.plugin, doing.sentence) == ("mip", "reported no progress on mip for 10 s")
        left = read_note(note_path(tmp_path, "worker-1"))
        assert (left.plugin, left.place, left.job, left.started, left.subject) == ("mip", "job mip", 7, 3.5, "1.2.3")
        assert left.hung
    assert read_note(note_path(tmp_path, "worker-1")) is None
    note.close()


def test_who_raises_has_come_back():
    """A segmenter that refuses a volume in time hangs no more: it has come back (docs/plugins.md)."""
    came_back = []
    watch = Watch(returned=lambda *told: came_back.append(told))
    with pytest.raises(CannotProceed), watch.over("node", "job segment", 5.0), watch.over("mine", "job segment", 5.0):
        raise CannotProceed("no volume of mine")
    assert came_back == [("mine", "job segment"), ("node", "job segment")]


@pytest.mark.parametrize("limit", [float("inf"), 1e12])
def test_a_limit_that_is_meant_to_be_none_ends_nobody(limit):
    ended = []
    watch = Watch(end=ended.append)
    watch._is_looking = True  # as after `start`, without its thread
    with watch.over("mip", "job mip", limit):
        watch.sign_of_life()
        assert watch.look() > 1e9
    assert not ended


def claimed(archive, kind="mip"):
    archive.jobs.push(kind, "1.2.3")
    return archive.jobs.claim("worker-1", claim_s=60, max_attempts=3)


def left_by(archive, plugin_name, place, how_it_ended, *, hung=False, job=None, subject=""):
    number, started = (job.id, job.started) if job else (0, 0.0)
    doing = Doing(plugin_name, place, 5.0, number, started, "1.2.3" if job else subject, hung)
    settle(archive, "worker-1", doing, how_it_ended, told().jobs, {plugin_name: "p 1"})


def test_a_job_that_hung_is_tried_once_more(archive):
    job = claimed(archive)
    left_by(archive, "mip", "job mip", "ended", hung=True, job=job)
    assert archive.jobs.get(job.id).state == "queued"
    assert archive.jobs.get(job.id).error == "plug-in mip reported no progress on mip for 5 s"
    again = archive.jobs.claim("worker-1", claim_s=60, max_attempts=3)
    left_by(archive, "mip", "job mip", "ended", hung=True, job=again)
    assert archive.jobs.get(job.id).state == "failed"


def test_a_job_in_which_somebody_else_hung_is_not_to_blame_and_goes_on_without(archive):
    job = claimed(archive, jobs.SERIES_STABLE)
    left_by(archive, "slow", "jobs_for_series", "ended", hung=True, job=job)
    assert (archive.jobs.get(job.id).state, archive.jobs.get(job.id).attempts) == ("queued", 0)
    sentence = "did not return from jobs_for_series within 5 s"
    assert plugin_troubles.not_asked(archive.database, "1.2.3") == {("slow", "jobs_for_series"): sentence}
    assert plugin_troubles.not_asked(archive.database, "1.2.4") == {}


def test_nobody_is_blamed_for_the_end_of_the_machine(archive):
    job = claimed(archive)
    left_by(archive, "mip", "job mip", "", job=job)
    assert archive.jobs.get(job.id).state == "running", "the worker frees it as it always did"
    assert plugin_troubles.in_a_row(archive.database) == set()


def test_who_hangs_at_every_start_is_left_out_until_another_version_comes_or_it_comes_back(archive):
    for times in range(2):
        assert Troubles(archive).left_out({"x": "p 1"}) == {}, times
        left_by(archive, "x", "import", "ended", hung=True)
    assert Troubles(archive).left_out({"x": "p 1"}) == {"x": "did not return from import within 5 s"}
    assert Troubles(archive).left_out({"x": "p 2"}) == {}
    Troubles(archive).came_back("x", "import")
    assert Troubles(archive).left_out({"x": "p 1"}) == {}


@pytest.mark.parametrize("hung", [True, False])
def test_one_bad_file_costs_its_job_and_three_in_a_row_cost_the_plug_in(archive, hung):
    for _ in range(5):
        left_by(archive, "x", "job mip", "died of SIGSEGV", hung=hung, subject="1.1")
    left_by(archive, "x", "job mip", "died of SIGSEGV", hung=hung, subject="1.2")
    assert Troubles(archive).left_out({}) == {}
    Troubles(archive).came_back("x", "job mip")
    for subject in ("1.3", "1.4"):
        left_by(archive, "x", "job mip", "died of SIGSEGV", hung=hung, subject=subject)
    assert Troubles(archive).left_out({}) == {}
    left_by(archive, "x", "job mip", "died of SIGSEGV", hung=hung, subject="1.5")
    assert set(Troubles(archive).left_out({})) == {"x"}


def test_a_note_outlives_its_process_and_nonsense_in_it_is_nothing(tmp_path):
    path = note_path(tmp_path, "worker-1")
    note = Note(path)
    note.write(Doing("mip", "import", 5.0))
    assert Note(path).left.plugin == "mip"
    path.write_text(json.dumps({"unknown": 1}), encoding="utf-8")
    assert read_note(path) is None
