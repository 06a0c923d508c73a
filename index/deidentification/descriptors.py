"""Free text reduced to words that are known to say nothing of a person (Clean Descriptors, PS3.15 E.3.5).

What is left of a text: words of a vocabulary of the field (the meanings of coded concepts and the names of attributes
that pydicom carries, terms of technique, vertebrae), and numbers that measure something
(`index.deidentification.numbers`). Of these, whatever the object itself has as a name, an identifier, an institution or
a place is dropped, too. All else goes: unknown words, longer numbers, dates, every sign between words. So a finding may
lose words; a name cannot stay unless it is a word of the field and stands nowhere in the object's attributes of names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from pydicom._dicom_dict import DicomDictionary
from pydicom.charset import default_encoding
from pydicom.dataset import Dataset

from index.deidentification import names, numbers, table
from index.deidentification.names import Identifiers
from index.deidentification.reader import Reader, texts

_TECHNIQUE = frozenset("""
    2d 3d 4d abd abdomen adc and ap arterial ax axial basis bin bolus bone brain by cardiac cbct chest cm contrast cor
    coronal counter ct cta ctv dark delayed dicom diffusion dose dti dwi dynamic ecg echo energy enhanced epi fat
    fdg fgre field flair flash flat fluid for fov fse full gated gd gre gtv head high hip hr hydroxyapatite hz in
    iodine iso iv kernel kev kg knee kv kvp lat left liver localizer low lung mas material mg mhz min mip ml mm mpi
    mpr mprage mr mra mrcp mri ms neck nm no non oblique of on p2 pa pancreas pd pelvis perfusion phantom pixel
    plain portal post pre projection prostate proton ptv pw recon reconstruction resolution right rt sag sagittal
    scan scout se sec segmentation series shoulder slice small soft spect spectral spgr spine standard stir sub
    survey swi system t1 t1w t2 t2w the thick thin thorax threshold tissue to tof topogram tra trans tse venous
    volume vr w water weighted wfi whole with without wrist xa
""".split())  # noqa: SIM905  (so that it can be read, and added to)
_NAMES = frozenset({"hall", "hill", "james", "king", "mark", "miller", "moore", "rose", "taylor", "wright"})
"""Words of coded concepts that are more often a name."""

_VERTEBRA = re.compile(r"c[1-7]|t(?:h)?(?:1[0-2]|[1-9])|l[1-5]|s[1-5]", re.ASCII)
_PART_OF_KEYWORD = re.compile(r"[A-Z]?[a-z]+")
_SHORTEST_PART = 4


@cache
def vocabulary() -> frozenset[str]:
    """Return the words that may stay, in lower case."""
    from pydicom.sr.codedict import codes  # large: network processes have no need of it before somebody cleans text

    keywords = {entry[4] for entry in DicomDictionary.values()}
    for scheme in ("DCM", "SCT", "UCUM"):
        keywords.update(getattr(codes, scheme).dir())
    words = {part.lower() for keyword in keywords for part in _PART_OF_KEYWORD.findall(keyword)}
    return frozenset(word for word in words if len(word) >= _SHORTEST_PART) - _NAMES | _TECHNIQUE


@dataclass(frozen=True)
class Cleaner:
    """Cleans the free text of one object.

    Attributes
    ----------
    words
        Words that identify somebody or something in this object.
    identifiers
        What identifies somebody or something, as it may stand in other text.
    """

    words: frozenset[str] = frozenset()
    identifiers: Identifiers = field(default_factory=Identifiers)

    @classmethod
    def of(cls, dataset: Dataset) -> Cleaner:
        """Return the cleaner for a data set: it knows what names, numbers and places the data set has anywhere.

        An attribute counts when it is a person's name, or when Table E.1-1 touches it and no option cleans or keeps it.
        """
        found = _Found()
        found.collect(Reader(dataset, [default_encoding]))
        words = {word for value in found.values() for word in _words(names.folded(value)) if len(word) > 1}
        return cls(frozenset(words), found.identifiers())

    def clean(self, text: str) -> str:
        """Return the words of `text` that may stay, with single spaces between them."""
        words = numbers.words(text)
        going = numbers.doubtful(words, self._may_stay)
        kept = (word[0] for place, word in enumerate(words) if place not in going)
        return " ".join(word for word in kept if self._may_stay(word.lower()))

    def names(self, text: str, *, short: bool = True) -> bool:
        """Whether `text` has an identifier of the object in it.

        Parameters
        ----------
        short
            Also one of less than four letters or digits.
        """
        return bool(text) and self.identifiers.found_in(text, short=short)

    def _may_stay(self, word: str) -> bool:
        if names.folded(word) in self.words:
            return False
        return word in vocabulary() or numbers.is_number(word) or _VERTEBRA.fullmatch(word) is not None


_PLAIN_WORD = re.compile(r"[^\W_]+")


def _words(value: str) -> Iterator[str]:
    """Yield the words of an identifier: decimals as one word, and in their parts."""
    yield from (word[0] for word in numbers.words(value))
    yield from _PLAIN_WORD.findall(value)


_TEXTS = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT", "DA"})
_MOST_IDENTIFIERS = 2048
_OF_PATIENT = 0x0010


@dataclass
class _Found:
    """Values that identify somebody or something: persons' names, what says who the patient is, and others."""

    persons: set[str] = field(default_factory=set)
    patient: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)

    def values(self) -> set[str]:
        return self.persons | self.patient | self.others

    def identifiers(self) -> Identifiers:
        of_patient = names.of_values(self.patient, are_of_patient=True)
        return names.together(names.of_names(self.persons), of_patient, names.of_values(self.others))

    def collect(self, reader: Reader) -> None:
        """Add those of a data set, in sequences as well."""
        for tag, raw in reader.elements():
            vr = reader.vr(tag, raw)
            is_full = len(self.persons) + len(self.patient) + len(self.others) > _MOST_IDENTIFIERS
            if tag.is_private or is_full or not may_identify(int(tag), vr):
                continue
            value = reader.value(tag, raw)
            if vr == "SQ":
                for item in value or []:
                    self.collect(Reader(item, reader.encodings))
            else:
                kind = self.persons if vr == "PN" else self.patient if tag.group == _OF_PATIENT else self.others
                kind.update(text.strip() for text in texts(value) if text.strip())


@cache
def may_identify(tag: int, vr: str) -> bool:
    """Whether values of an attribute are identifiers, or items that may have some."""
    if vr == "SQ":
        return True
    row = table.attribute(tag)
    return vr == "PN" or (vr in _TEXTS and row is not None and not _CLEANED.intersection(row.options))


_CLEANED = frozenset({"clean_descriptors", "retain_patient_characteristics"})
