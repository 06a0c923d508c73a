"""The plug-ins of this process: loaded one after the other, asked one after the other, and none in another's way."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pluggy
from pydantic import BaseModel, ValidationError

from config.mistakes import one_sentence
from config.plugins import chosen, read_choice
from config.settings import Settings, load_settings
from index.jobs import NETWORK_KINDS, SERIES_STABLE
from plugins import hookspecs
from plugins.found import BUILT_IN, ENTRY_POINT_GROUP, Found, found, in_order, unknown_names
from plugins.hookspecs import JobFunction
from plugins.node import Series, Work
from plugins.watch import UNWATCHED, Watch

__all__ = ["BUILT_IN", "ENTRY_POINT_GROUP"]

logger = logging.getLogger(__name__)

_NOT_FOR_PLUGINS = {SERIES_STABLE, *NETWORK_KINDS}
"""Kinds of job that the node does itself."""


PATIENCE_WITH_BUILT_IN = 10.0
"""Times ``[plugins] hook_s``: on a cold disk, the libraries of the node itself take their time, and do not hang."""


class PluginError(Exception):
    """A plug-in does not keep to the contract; a clause that goes behind its name."""


class NotAsked(Exception):
    """It was not asked, for what it did before; a clause that goes behind its name."""


class Plugins(pluggy.PluginManager):
    """The plug-ins that this process has loaded.

    Parameters
    ----------
    settings
        Of the node; None: the defaults.
    watch
        Who looks whether they come back.

    Attributes
    ----------
    left_out
        Name of a plug-in → why it is not used, a clause that goes behind the name.
    disabled
        Those that the user does not want.
    not_asked
        (plug-in, hook) → what it did, of those who are not to be asked at the moment.
    """

    def __init__(self, settings: Settings | None = None, watch: Watch = UNWATCHED) -> None:
        super().__init__(hookspecs.PROJECT)
        self.add_hookspecs(hookspecs)
        self.settings = settings or load_settings(environment={})
        self.watch = watch
        self.left_out: dict[str, str] = {}
        self.disabled: tuple[str, ...] = ()
        self.not_asked: Mapping[tuple[str, str], str] = {}
        self._own: dict[str, Any] = {}
        self._stalled: dict[tuple[str, str], float] = {}

    def add(self, plugin: Found) -> None:
        """Load one plug-in; one that cannot be used is left out, with the reason in the log."""
        try:
            patience = PATIENCE_WITH_BUILT_IN if plugin.built_in else 1.0
            with self.watch.over(plugin.name, "import", patience * self.settings.plugins.hook_s):
                self._register(plugin)
            self._own[plugin.name] = self._own_settings(plugin.name)
        except PluginError as error:
            self.leave_out(plugin.name, str(error))

    def _register(self, plugin: Found) -> None:
        try:
            self.register(plugin.load(), plugin.name)
            self.check_pending()
        except BaseException as error:  # somebody else's package: whatever is wrong with it, the node goes on
            if is_of_user(error):
                raise
            logger.debug("plug-in %s", plugin.name, exc_info=True)
            raise PluginError(f"cannot be imported: {words_of(error)}") from error
        for caller in self.get_hookcallers(self.get_plugin(plugin.name)) or ():
            for implementation in caller.get_hookimpls():
                if implementation.plugin_name == plugin.name and (
                    implementation.wrapper or implementation.hookwrapper
                ):
                    raise PluginError(f"wraps {caller.name}: a plug-in does not see the answers of others")

    def _own_settings(self, name: str) -> Any:
        """Return the plug-in's settings as it wants them."""
        table = self.settings.plugins.settings.get(name, {})
        for _, model in ask_each(self, "own_settings", only=name):
            if isinstance(model, Exception):
                raise PluginError(f"own_settings: {words_of(model)}") from model
            if model is None:
                continue
            if not (isinstance(model, type) and issubclass(model, BaseModel)):
                raise PluginError(f"own_settings: expected a class of pydantic models, got {model!r}")
            try:
                return model.model_validate(table)
            except ValidationError as error:
                keys, wrong = ", ".join(model.model_fields), one_sentence(error, model)
                raise PluginError(f"[plugins.settings.{name}] {wrong}; its keys are {keys}") from error
            except Exception as error:  # of a validator, or of what makes a default
                raise PluginError(f"[plugins.settings.{name}] cannot be read: {words_of(error)}") from error
        return table

    def own(self, name: str) -> Any:
        """Return the settings of the plug-in's own."""
        return self._own.get(name, self.settings.plugins.settings.get(name, {}))

    def leave_out(self, name: str, why: str) -> None:
        """Go on without a plug-in."""
        self.left_out[name] = why
        if self.has_plugin(name):
            self.unregister(name=name)
        logger.error("plug-in %s is left out: %s", name, why)

    def ask_limits(self) -> None:
        """Ask which kinds of job may be silent for how long."""
        for name, answer in ask_each(self, "stalled_limits", settings=self.settings):
            if answer is not None and not isinstance(answer, Mapping | Exception):
                logger.error("plug-in %s: stalled_limits: expected seconds by kind of job, got %.100r", name, answer)
            for kind, limit in answer.items() if isinstance(answer, Mapping) else ():
                if isinstance(limit, int | float) and limit > 0:
                    self._stalled[name, kind] = float(limit)
                else:
                    logger.error("plug-in %s: stalled_limits: expected seconds for %s, got %r", name, kind, limit)

    def stalled_s(self, name: str, kind: str) -> float:
        """Return how long a plug-in's job of this kind may report no progress, seconds."""
        return self._stalled.get((name, kind), self.settings.jobs.stalled_s)


def load_plugins(
    only: Sequence[str] | None = None,
    *,
    settings: Settings | None = None,
    watch: Watch = UNWATCHED,
    troublesome: Mapping[str, str] | None = None,
) -> Plugins:
    """Return the plug-ins, each registered and checked against the hook specifications.

    Parameters
    ----------
    only
        Just these of the built-in ones, and no installed package.
    settings
        Of the node: which plug-ins run, in which order, and what they are told; None: all, as they come.
    watch
        Who looks whether they come back.
    troublesome
        Those that are left out for what they did before: name → what that was.

    Raises
    ------
    config.plugins.ChoiceError
        ``plugins.toml`` cannot be read.
    """
    plugins = Plugins(settings, watch)
    there = found()
    if only is not None:
        for each in there:
            if each.built_in and each.name in only:
                plugins.add(each)
        return plugins
    wanted = plugins.settings.plugins
    if settings is not None:
        wanted = chosen(wanted, read_choice(settings.archive.data))
        for sentence in unknown_names(wanted, there):
            logger.warning(sentence)
    plugins.disabled = tuple(each.name for each in there if each.name in wanted.disabled)
    for each in in_order(there, wanted.order):
        if each.problem:
            logger.error("plug-in %s of %s is left out: %s", each.name, each.package, each.problem)
        elif each.name in plugins.disabled:
            logger.info("plug-in %s is disabled", each.name)
        elif troublesome and each.name in troublesome:
            again = f"`tharsis plugins enable {each.name}` tries it again"
            plugins.leave_out(each.name, f"it {troublesome[each.name]}; {again}")
        else:
            plugins.add(each)
    return plugins


def ask_each(
    manager: pluggy.PluginManager, hook: str, *, only: str | None = None, **arguments: Any
) -> Iterator[tuple[str, Any]]:
    """Ask one plug-in after the other and yield (its name, its answer or the exception that it raised).

    Unlike a plain hook call, one that raises does not keep the others from being asked, whatever it raises; one that
    does not return is known by its name (`plugins.watch`).

    Parameters
    ----------
    only
        Ask just this plug-in.
    """
    plugins = manager if isinstance(manager, Plugins) else _unwatched(manager)
    place = {name: number for number, (name, _) in enumerate(plugins.list_name_plugin())}
    implementations = [each for each in getattr(plugins.hook, hook).get_hookimpls() if each.plugin_name in place]
    for implementation in sorted(implementations, key=lambda each: place[each.plugin_name]):
        name = implementation.plugin_name
        if only is not None and name != only:
            continue
        if (name, hook) in plugins.not_asked:
            yield name, NotAsked(plugins.not_asked[name, hook])
            continue
        told = {**arguments, "own": plugins.own(name)} if hook != "own_settings" else arguments
        with plugins.watch.over(name, hook, plugins.settings.plugins.hook_s):
            answer = _answer(implementation, told)
        yield name, answer


def _unwatched(manager: pluggy.PluginManager) -> Plugins:
    plugins = Plugins()
    for name, plugin in manager.list_name_plugin():
        plugins.register(plugin, name)
    return plugins


def _answer(implementation: pluggy.HookImpl, arguments: Mapping[str, Any]) -> Any:
    """Return what a plug-in answers, or the exception that it raised."""
    try:
        return implementation.function(**{name: arguments[name] for name in implementation.argnames})
    except BaseException as error:  # its own fault, to be told with its name; SystemExit, too: it ends no worker
        if is_of_user(error):
            raise
        logger.exception("plug-in %s: %s failed", implementation.plugin_name, implementation.function.__name__)
        return error if isinstance(error, Exception) else PluginError(f"raised {words_of(error)}")


def is_of_user(error: BaseException) -> bool:
    """Whether somebody has pressed Ctrl-C: processes of a node do not listen to that, so there, a plug-in raised it."""
    return isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def complaint(name: str, error: BaseException) -> str:
    """Say in one sentence what a plug-in did."""
    return f"plug-in {name} {error}" if isinstance(error, NotAsked) else f"plug-in {name}: {words_of(error)}"


def words_of(error: BaseException) -> str:
    """Say what was raised, with its kind where that is not ours."""
    return sentence_of(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {sentence_of(error)}"


def sentence_of(error: BaseException) -> str:
    """Return what an exception says; that of somebody else's may raise one itself when it is asked."""
    try:
        return str(error)
    except Exception as another:  # noqa: BLE001 - whatever is wrong with it
        return f"(its own text cannot be made: {type(another).__name__})"


def work_for(manager: pluggy.PluginManager, series: Series, settings: Settings) -> Iterator[tuple[str, Any]]:
    """Ask every plug-in what is to be done with a series; yield (its name, a list of Work or what is wrong)."""
    for name, answer in ask_each(manager, "jobs_for_series", series=series, settings=settings):
        yield name, answer if isinstance(answer, Exception) else _checked_work(answer)


def _checked_work(answer: object) -> list[Work] | PluginError:
    """Refuse what cannot become rows of the job queue: it would keep the work of others from getting there."""
    if answer is None:
        return []
    if not isinstance(answer, list | tuple):
        return PluginError(f"jobs_for_series: expected a list of Work, got {answer!r:.100}")
    wanted: list[Work] = []
    for each in answer:
        if not (isinstance(each, Work) and isinstance(each.kind, str) and isinstance(each.subject, str)):
            return PluginError(f"jobs_for_series: expected Work of a kind and a subject, got {each!r:.100}")
        if each.kind in _NOT_FOR_PLUGINS:
            return PluginError(f"jobs_for_series: jobs of kind {each.kind!r} are asked for by the node itself")
        try:
            f"{each.kind}{each.subject}".encode()
        except UnicodeError as error:
            return PluginError(f"jobs_for_series: kind or subject of {each!r:.100} is no text: {error}")
        try:
            wanted.append(replace(each, parameters=_as_json(each.parameters)))
        except (TypeError, ValueError, RecursionError) as error:
            return PluginError(f"jobs_for_series: the parameters of {each.kind!r} are no JSON: {error}")
    return wanted


def _as_json(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as they come back from a row: names are text, and there are no numbers that JSON lacks."""
    written: dict[str, Any] = json.loads(json.dumps(dict(parameters), allow_nan=False))
    return written


def job_owners(manager: pluggy.PluginManager) -> dict[str, tuple[str, JobFunction]]:
    """Return the plug-in and its function for each kind of job.

    A plug-in that raises, answers nonsense or claims what belongs to one that is asked before it is left out as a
    whole: its series would be worked on by the function of another.
    """
    owners: dict[str, tuple[str, JobFunction]] = {}
    for name, answer in list(ask_each(manager, "job_functions")):
        wrong = _wrong_with(answer, owners)
        if not wrong:
            owners |= {kind: (name, function) for kind, function in (answer or {}).items()}
        elif isinstance(manager, Plugins):
            manager.leave_out(name, wrong)
        else:
            raise PluginError(f"plug-in {name}: {wrong}")
    return owners


def _wrong_with(answer: object, owners: Mapping[str, tuple[str, JobFunction]]) -> str:
    if isinstance(answer, Exception):
        return f"job_functions: {words_of(answer)}"
    if answer is None:
        return ""
    if not isinstance(answer, Mapping):
        return f"job_functions: expected functions by kind of job, got {answer!r:.100}"
    for kind, function in answer.items():
        if not (isinstance(kind, str) and kind and callable(function)):
            return f"job_functions: expected a kind of job and its function, got {kind!r}: {function!r:.100}"
        if kind in _NOT_FOR_PLUGINS:
            return f"job_functions: jobs of kind {kind!r} are done by the node itself"
        if kind in owners:
            return f"job_functions: jobs of kind {kind!r} are done by plug-in {owners[kind][0]}, which is asked before"
    return ""


def job_functions(manager: pluggy.PluginManager) -> dict[str, JobFunction]:
    """Return the function for each kind of job; see `job_owners`."""
    return {kind: function for kind, (_, function) in job_owners(manager).items()}
