"""The door to de-identification: data sets, answers and files in, the same without what identifies somebody out."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from pydicom.charset import default_encoding
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag
from pydicom.uid import UID, ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from config.deidentification import Option
from config.identity import IMPLEMENTATION_CLASS_UID, implementation_version_name
from config.settings import Settings
from index.deidentification import files, marks, pixels
from index.deidentification.descriptors import Cleaner
from index.deidentification.private import Declarations
from index.deidentification.profile import Action, Profile
from index.deidentification.reader import Reader, patient_of
from index.deidentification.secret import Secret, load_secret
from index.deidentification.walk import Change, Walk, shift_of
from index.errors import CannotDeidentify, NotFound

_ENCAPSULATED = "1.2.840.10008.5.1.4.1.1.104."
_VOICE = ("1.2.840.10008.5.1.4.1.1.9.4.1", "1.2.840.10008.5.1.4.1.1.9.4.2")


class Deidentifier:
    """Applies one profile with one secret.

    Parameters
    ----------
    profile
        What is done.
    secret
        What replacements follow from.
    """

    def __init__(self, profile: Profile, secret: Secret) -> None:
        self.profile = profile
        self._secret = secret

    @classmethod
    def from_settings(cls, settings: Settings, data: Path, name: str) -> Deidentifier:
        """Return the de-identifier of the profile `name` of ``[[deidentification]]``, with the key below `data`.

        Raises
        ------
        NotFound
            No such profile.
        CannotDeidentify
            The key file is none.
        """
        entry = next((entry for entry in settings.deidentification if entry.name == name), None)
        if entry is None:
            known = ", ".join(entry.name for entry in settings.deidentification) or "there is none"
            raise NotFound(f"no profile {name!r} in [[deidentification]] (known: {known})")
        return cls(Profile.from_settings(entry), load_secret(data))

    def deidentify(self, dataset: Dataset, *, observe: Callable[[Change], None] | None = None) -> Dataset:
        """Return a whole object as the profile lets it out; `dataset` stays as it is.

        Where `dataset` has File Meta Information, the result has some of its own.

        Parameters
        ----------
        observe
            Is told what becomes of each element.

        Raises
        ------
        CannotDeidentify
            The object, or something in it, cannot be made safe; one sentence says why.
        """
        reader = Reader(dataset, [default_encoding])
        sop_class = _identity(dataset, reader, marks.SOP_CLASS_UID, "MediaStorageSOPClassUID")
        sop_instance = _identity(dataset, reader, marks.SOP_INSTANCE_UID, "MediaStorageSOPInstanceUID")
        self._require_possible(sop_class, sop_instance)
        rectangles = pixels.require_clean(reader, sop_class, self.profile)
        try:
            made = self._walk(dataset, reader, sop_class, observe=observe).data_set(dataset)
        except RecursionError as error:
            raise CannotDeidentify("the object nests sequences too deeply") from error
        _take_over_source(made, dataset)
        made.SOPClassUID, made.SOPInstanceUID = UID(sop_class), UID(self.uid(sop_instance))
        marks.put(made, reader, self.profile, is_masked=bool(rectangles))
        syntax = str(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID", "") or "")
        if rectangles:
            syntax = pixels.mask(made, _copy(dataset), rectangles, syntax)
        if getattr(dataset, "file_meta", None) is not None:
            made.file_meta = _file_meta(made, syntax)
            made.preamble = bytes(128)
        return made

    def deidentify_answer(self, dataset: Dataset) -> Dataset:
        """Return a C-FIND answer as the profile lets it out: the same keys, empty where an object would lose them.

        The pseudonym follows from Patient ID and Issuer of Patient ID *in the answer*, and so do dates that are
        modified. Give it both, also where the question did not ask for them: without a Patient ID the pseudonym and
        modified dates are empty.
        """
        reader = Reader(dataset, [default_encoding])
        return self._walk(dataset, reader, "", is_answer=True).data_set(dataset)

    def deidentify_file(self, source: Path, target: Path) -> None:
        """Write the object in the Part 10 file `source` to `target` as the profile lets it out.

        Pixel data are copied as they are encoded unless a mask applies. `target` appears whole or not at all.

        Raises
        ------
        CannotDeidentify
            As `deidentify`; also what is no readable Part 10 file.
        """
        files.convert(source, target, self.deidentify)

    def uid(self, original: str) -> str:
        """Return the UID that stands for `original`; itself where the profile retains UIDs."""
        return original if self.profile.has(Option.RETAIN_UIDS) else self._secret.uid(original)

    def pseudonym(self, issuer: str, patient_id: str) -> str:
        """Return the Patient ID that stands for `patient_id` of `issuer`; "" for an empty one."""
        return self._secret.pseudonym(issuer, patient_id)

    def keeps(self, tag: int) -> bool:
        """Whether values of a standard attribute pass unchanged, so that matching on them tells nothing new."""
        return self.profile.action(tag) is Action.KEEP

    @staticmethod
    def _require_possible(sop_class: str, sop_instance: str) -> None:
        if sop_class == MediaStorageDirectoryStorage:
            raise CannotDeidentify("a DICOMDIR lists files and is no object: make a new one of what was de-identified")
        if not sop_class:
            raise CannotDeidentify("the object has no SOP Class UID", element="SOPClassUID")
        if not sop_instance:
            raise CannotDeidentify("the object has no SOP Instance UID", element="SOPInstanceUID")
        if sop_class.startswith(_ENCAPSULATED):
            sentence = f"{pixels.kind_of(sop_class)}: what is in an encapsulated document cannot be checked"
            raise CannotDeidentify(sentence)
        if sop_class in _VOICE:
            raise CannotDeidentify(f"{UID(sop_class).name}: what a recording says cannot be checked")

    def _walk(
        self, dataset: Dataset, reader: Reader, sop_class: str, *,
        is_answer: bool = False, observe: Callable[[Change], None] | None = None,
    ) -> Walk:  # fmt: skip
        patient = patient_of(reader)
        study = "" if is_answer else "".join(reader.texts(marks.STUDY_INSTANCE_UID))
        shift = shift_of(self._secret, patient, study) if self.profile.dates == "modified" else None
        return Walk(
            self.profile, self._secret, sop_class, patient, shift, Cleaner.of(dataset), Declarations.of(dataset),
            is_answer=is_answer, observe=observe,
        )  # fmt: skip


def _identity(dataset: Dataset, reader: Reader, tag: BaseTag, keyword: str) -> str:
    """Return a UID of an object; some files have it in their File Meta Information only."""
    told = "".join(reader.texts(tag)).strip(" \0")
    return told or str(getattr(dataset, "file_meta", {}).get(keyword, "") or "").strip(" \0")


def _copy(source: Dataset) -> Dataset:
    """Return the same elements in a data set of their own, which may be decoded in place."""
    copy = Dataset()
    for tag, element in source.items():
        copy[tag] = element
    _take_over_source(copy, source)
    return copy


def _take_over_source(made: Dataset, source: Dataset) -> None:
    """Let values that were left in the file of `source` be read from there."""
    is_implicit, is_little_endian = source.original_encoding
    made.set_original_encoding(is_implicit, is_little_endian, source.original_character_set)
    for name in ("filename", "buffer", "fileobj_type", "timestamp"):
        if hasattr(source, name):
            setattr(made, name, getattr(source, name))


def _file_meta(made: Dataset, syntax: str) -> FileMetaDataset:
    """Return File Meta Information that tells nothing of who sent or wrote the original (PS3.10 7.1)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = made.SOPClassUID, made.SOPInstanceUID
    meta.TransferSyntaxUID = UID(syntax or ExplicitVRLittleEndian)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = _version_name()
    return meta


@cache
def _version_name() -> str:
    return implementation_version_name()
