"""Free text reduced to words that are known to say nothing of a person (Clean Descriptors, PS3.15 E.3.5).

What is left of a text: words of a vocabulary of the field (the meanings of coded concepts and the names of attributes
that pydicom carries, terms of technique, vertebrae), numbers of at most three digits with units of measurement. Of these
whatever the object itself has as a name, an identifier, an institution or a place is dropped, too. All else goes:
unknown words, longer numbers, dates, every sign between words. So a finding may lose words; a name cannot stay unless it
is a word of the field and stands nowhere in the object's attributes of names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from index.deidentification import table

_TECHNIQUE = frozenset(
    "abd abdomen adc arterial ax axial bone bolus brain cardiac cbct chest contrast cor coronal ct cta ctv delayed "
    "diffusion dose dti dwi dynamic echo ecg enhanced epi fat fdg fgre flair flash fluid fov fse full gd gated gre "
    "gtv head hip hr high iso iv kernel knee lat left liver localizer low lung mip mpr mpi mprage mr mra mri mrcp ms "
    "neck nm no non of oblique p2 pa pancreas pd pelvis perfusion phantom plain portal post pre projection prostate "
    "proton ptv pw recon reconstruction resolution right rt sag sagittal scan scout se segmentation series shoulder slice "
    "small soft spect spgr spine standard stir sub survey swi system t1 t1w t2 t2w thick thin thorax tissue tof topogram "
    "tra trans tse venous volume vr w water weighted wfi whole with without wrist xa dicom ap and the in on to for by "
    "bin energy spectral counter threshold flat field dark pixel material basis water iodine hydroxyapatite".split()
)
_WORD = re.compile(r"[^\W_]+(?:[.,]\d+)?", re.UNICODE)
_NUMBER = re.compile(r"\d{1,3}(?:[.,]\d{1,3})?(?:mm|cm|m|kv|kev|kvp|ma|mas|ms|s|min|ml|mg|g|kg|mbq|gy|cgy|t|hz|mhz|x|d)?", re.ASCII)
_VERTEBRA = re.compile(r"c[1-7]|t(?:h)?(?:1[0-2]|[1-9])|l[1-5]|s[1-5]", re.ASCII)
_PART_OF_KEYWORD = re.compile(r"[A-Z]?[a-z]+")
_SHORTEST_PART = 3


@cache
def vocabulary() -> frozenset[str]:
    """Return the words that may stay, in lower case."""
    keywords = {entry[4] for entry in DicomDictionary.values()}
    for scheme in ("DCM", "SCT", "UCUM"):
        keywords.update(getattr(codes, scheme).dir())
    words = {part.lower() for keyword in keywords for part in _PART_OF_KEYWORD.findall(keyword)}
    return frozenset(word for word in words if len(word) >= _SHORTEST_PART) | _TECHNIQUE


@dataclass(frozen=True)
class Cleaner:
    """Cleans the free text of one object.

    Attributes
    ----------
    identifiers
        Words that identify somebody or something in this object, in lower case.
    """

    identifiers: frozenset[str] = frozenset()

    def clean(self, text: str) -> str:
        """Return the words of `text` that may stay, with single spaces between them."""
        return " ".join(word for word in _WORD.findall(text) if self._may_stay(word.lower()))

    def _may_stay(self, word: str) -> bool:
        if word in self.identifiers:
            return False
        return word in vocabulary() or bool(_NUMBER.fullmatch(word) or _VERTEBRA.fullmatch(word))


def identifiers_of(dataset: Dataset, most: int = 4096) -> frozenset[str]:
    """Return the words of all that identifies in a data set: names, numbers, places, in sequences as well.

    An attribute counts when it is a person's name, or when Table E.1-1 touches it and lets no option clean it.
    """
    found: set[str] = set()
    _collect(dataset, found, most)
    return frozenset(found)


_TEXTS = frozenset({"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UT", "CS", "AS", "DA"})


def _collect(dataset: Dataset, found: set[str], most: int) -> None:
    for tag in list(dataset.keys()):
        raw = dataset.get_item(tag, keep_deferred=True)
        vr = raw.VR if raw is not None else None
        if vr not in (None, "UN", "SQ", *_TEXTS) or tag.is_private or len(found) > most:
            continue
        try:
            element = dataset[tag]
        except Exception:  # noqa: BLE001, S112  (a value that cannot be read names nobody)
            continue
        if element.VR == "SQ":
            for item in element.value or []:
                _collect(item, found, most)
        elif element.VR in _TEXTS and _identifies(int(tag), element.VR):
            found.update(_words(element.value))


def _identifies(tag: int, vr: str) -> bool:
    row = table.attribute(tag)
    return vr == "PN" or (row is not None and "clean_descriptors" not in row.options and vr != "CS")


def _words(value: Any) -> Iterable[str]:
    return (word.lower() for word in _WORD.findall(str(value)) if len(word) > 1)
