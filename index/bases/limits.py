"""Which kind of index serves how many vectors, and how good it has to be."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from config.settings import SimilaritySettings


class Kind(StrEnum):
    """What a base searches with; each keeps the vectors themselves as well, for exact search and exact ranking."""

    FLAT = "FLAT"
    """Nothing but the vectors: always exact."""
    HNSW = "HNSW"
    """A graph (Malkov and Yashunin, PAMI 2020) over the vectors."""
    IVF4 = "IVF4"
    """Inverted lists of product-quantised vectors of 4 bits a part, compared in registers (André et al., PAMI 2021)."""
    IVF = "IVF"
    """Inverted lists (Jégou, Douze, Schmid, PAMI 2011) of vectors in 8 bits a value."""
    IVFPQ = "IVFPQ"
    """Inverted lists of product-quantised vectors: the smallest."""


@dataclass(frozen=True)
class IndexLimits:
    """The settings of ``[similarity]`` that concern the index.

    Attributes
    ----------
    exact_up_to
        So many vectors, or as many as a filter leaves, are searched exactly; beyond it approximately.
    hnsw_up_to, ivf_up_to
        Largest number of vectors of these kinds; the next kind takes over.
    target_recall
        What recall has to reach with 95 % confidence, 0 to 1.
    rebuild_share
        A base is made again when added and removed rows are more than this share of it.
    save_from
        Fewer vectors have no base: each process reads them.
    """

    exact_up_to: int = 200_000
    hnsw_up_to: int = 0
    ivf_up_to: int = 10_000_000
    target_recall: float = 0.95
    rebuild_share: float = 0.05
    save_from: int = 20_000

    @classmethod
    def from_settings(cls, settings: SimilaritySettings) -> IndexLimits:
        """Return what the settings say."""
        return cls(
            exact_up_to=settings.exact_up_to,
            hnsw_up_to=settings.hnsw_up_to,
            ivf_up_to=settings.ivf_up_to,
            target_recall=settings.target_recall,
            rebuild_share=settings.rebuild_share,
            save_from=settings.save_from,
        )

    def kind(self, count: int) -> Kind | None:
        """Return the kind of base for `count` vectors; None: they need none."""
        if count < max(1, self.save_from):
            return None
        ends = ((self.exact_up_to, Kind.FLAT), (self.hnsw_up_to, Kind.HNSW), (self.ivf_up_to, Kind.IVF4))
        return next((kind for end, kind in ends if count <= end), Kind.IVFPQ)
