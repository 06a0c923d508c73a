"""What would be done with the stored series if they came in now: for settings that were switched on later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from config.settings import Settings
from index.archive import Archive
from index.errors import NotFound
from plugins.manager import complaint, job_functions, load_plugins, work_for
from plugins.node import CannotProceed, Series, Work
from reconstruct.projections.p6 import encodings_from


@dataclass(frozen=True)
class Wanted:
    """The answer of the plug-ins.

    Attributes
    ----------
    work
        Each piece once.
    refused
        A sentence for each series that cannot be asked about, and each plug-in that failed.
    """

    work: tuple[Work, ...]
    refused: tuple[str, ...]


def work_of_kind(
    archive: Archive, settings: Settings, kind: str, progress: Callable[[float], None] | None = None
) -> Wanted:
    """Ask every plug-in about every stored series, and return the jobs of one kind that they ask for.

    Raises
    ------
    CannotProceed
        No plug-in does jobs of this kind.
    """
    plugins = load_plugins(settings=settings)
    known = job_functions(plugins)
    if kind not in known:
        raise CannotProceed(f"no plug-in does jobs of kind {kind!r}; there are {', '.join(sorted(known))}")
    stored = archive.database.execute("SELECT DISTINCT series_instance_uid FROM series ORDER BY 1").fetchall()
    encodings = encodings_from(settings.site_mappings)
    work: dict[str, Work] = {}
    refused: list[str] = []
    for number, (uid,) in enumerate(stored, start=1):
        try:
            series = Series(archive, uid, encodings)
        except (CannotProceed, NotFound) as error:
            refused.append(str(error))
            continue
        for name, answer in work_for(plugins, series, settings):
            if isinstance(answer, Exception):
                refused.append(f"series {uid}: {complaint(name, answer)}")
            else:
                work |= {repr(each): each for each in answer if each.kind == kind}
        if progress is not None:
            progress(number / len(stored))
    return Wanted(tuple(work.values()), tuple(refused))
