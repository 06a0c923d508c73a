"""Which segmenters the plug-ins offer, and which of them the settings choose."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pluggy

from config.settings import Settings
from plugins.manager import ask_each, complaint
from plugins.segmentation.learned.models import weights_file
from plugins.segmentation.learned.segmenter import NAME as LEARNED
from plugins.segmentation.segmenter import Segmenter

INSTALLED_SEPARATELY = {"totalsegmentator": "pip install '.[totalsegmentator]'"}
"""Segmenters that are an extra of Tharsis, and how to install them in a checkout."""


logger = logging.getLogger(__name__)


class UnknownSegmenter(Exception):
    """``[segmentation] use`` names a segmenter that nobody offers; one sentence for the user."""


@dataclass(frozen=True)
class Offer:
    """A segmenter and the plug-in that offers it."""

    plugin: str
    segmenter: Segmenter


def chosen(plugins: pluggy.PluginManager, settings: Settings) -> dict[str, Segmenter]:
    """Return the segmenters that ``[segmentation] use`` names, by name and in its order.

    Raises
    ------
    UnknownSegmenter
        Nobody offers one of the names.
    """
    offers, failures = _offers(plugins, settings)
    return {name: _one(name, offers, failures, settings).segmenter for name in settings.segmentation.use}


def offered(plugins: pluggy.PluginManager, settings: Settings, name: str) -> Offer:
    """Return one segmenter, whatever is wrong with others.

    Raises
    ------
    UnknownSegmenter
        Nobody offers it.
    """
    return _one(name, *_offers(plugins, settings), settings)


def _offers(plugins: pluggy.PluginManager, settings: Settings) -> tuple[dict[str, Offer], list[str]]:
    """Ask every plug-in; return what is offered by name, and what went wrong."""
    offers: dict[str, Offer] = {}
    failures: list[str] = []
    for plugin, answer in ask_each(plugins, "segmenters", settings=settings):
        try:
            for name, segmenter in _named(answer):
                if name not in offers:
                    offers[name] = Offer(plugin, segmenter)
                elif name in settings.segmentation.use:
                    first = offers[name].plugin
                    logger.warning("segmenter %s of plug-in %s is not used: plug-in %s has one", name, plugin, first)
        except Exception as error:  # noqa: BLE001 - what it raised, or what reading its answer raises: its own fault
            failures.append(complaint(plugin, error))
    return offers, failures


def _named(answer: object) -> Iterator[tuple[str, Segmenter]]:
    if isinstance(answer, Exception):
        raise answer
    if answer is not None and not isinstance(answer, list | tuple):
        raise TypeError(f"segmenters: expected a list of segmenters, got {answer!r:.100}")
    yield from ((str(segmenter.name), segmenter) for segmenter in answer or ())


def _one(name: str, offers: dict[str, Offer], failures: list[str], settings: Settings) -> Offer:
    if name not in offers:
        sentence = f"segmentation.use: no segmenter {name!r} is offered{_hint(name, list(offers), settings)}"
        raise UnknownSegmenter("; ".join([sentence, *failures]))
    return offers[name]


def _hint(name: str, offered: list[str], settings: Settings) -> str:
    if name == LEARNED:
        model = settings.segmentation.learned_model
        if not model:
            return ": segmentation.learned_model does not name what `tharsis train-segmenter` made"
        return f": the archive has no weights {weights_file(settings.archive.data, model)}"
    if name in INSTALLED_SEPARATELY:
        return f": it comes with an extra of Tharsis, install it with {INSTALLED_SEPARATELY[name]}"
    near = difflib.get_close_matches(name, offered, n=1, cutoff=0.0)
    return f"; the nearest of those that are is {near[0]!r}" if near else ""
