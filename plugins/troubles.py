"""What this process has to know of the troubles that plug-ins have made, without asking the catalogue each time."""

from __future__ import annotations

from collections.abc import Mapping

from index import plugin_troubles
from index.archive import Archive


class Troubles:
    """The troubles that are noted in the catalogue.

    Parameters
    ----------
    archive
        Whose catalogue.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._in_a_row = plugin_troubles.in_a_row(archive.database)

    def left_out(self, versions: Mapping[str, str]) -> dict[str, str]:
        """Return who is not to be loaded, and what it did; `versions` are those installed."""
        return plugin_troubles.left_out(self._archive.database, versions)

    def came_back(self, plugin: str, place: str) -> None:
        """Wipe out what the plug-in has done at this place: it has come back in time."""
        if (plugin, place) not in self._in_a_row:
            return
        self._in_a_row.discard((plugin, place))
        with self._archive.transaction() as database:
            plugin_troubles.came_back(database, plugin, place)
