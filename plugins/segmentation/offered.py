"""Which segmenters the plug-ins offer, and which of them the settings choose."""

from __future__ import annotations

import difflib

import pluggy

from config.settings import Settings
from plugins.manager import ask_each
from plugins.segmentation.learned.models import weights_file
from plugins.segmentation.learned.segmenter import NAME as LEARNED
from plugins.segmentation.segmenter import Segmenter

INSTALLED_SEPARATELY = {"totalsegmentator": "pip install '.[totalsegmentator]'"}
"""Segmenters that are an extra of Tharsis, and how to install them in a checkout."""


class UnknownSegmenter(Exception):
    """``[segmentation] use`` names a segmenter that nobody offers, or that two offer; one sentence for the user."""


def chosen(plugins: pluggy.PluginManager, settings: Settings) -> dict[str, Segmenter]:
    """Return the segmenters that ``[segmentation] use`` names, by name and in its order.

    Raises
    ------
    UnknownSegmenter
        Nobody offers one of the names, or two plug-ins do.
    """
    found: dict[str, Segmenter] = {}
    failures: list[str] = []
    wanted = settings.segmentation.use
    for plugin, answer in ask_each(plugins, "segmenters", settings=settings):
        if isinstance(answer, Exception):
            failures.append(f"plug-in {plugin} failed when it was asked: {type(answer).__name__}: {answer}")
            continue
        for segmenter in answer or ():
            if segmenter.name in found and segmenter.name in wanted:
                raise UnknownSegmenter(f"two plug-ins offer a segmenter {segmenter.name!r}; plug-in {plugin} is one")
            found[segmenter.name] = segmenter
    for name in wanted:
        if name not in found:
            sentence = f"segmentation.use: no segmenter {name!r} is offered{_hint(name, list(found), settings)}"
            raise UnknownSegmenter("; ".join([sentence, *failures]))
    return {name: found[name] for name in wanted}


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
