"""The door to de-identification: data sets, answers and files in, the same without what identifies somebody out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from config.deidentification import Option
from config.identity import IMPLEMENTATION_CLASS_UID, implementation_version_name
from config.settings import Settings
from index.deidentification import files, marks, pixels
from index.deidentification.descriptors import Cleaner, identifiers_of
from index.deidentification.private import Declarations
from index.deidentification.profile import Action, Profile
from index.deidentification.secret import Secret, load_secret
from index.deidentification.walk import Change, Reader, Walk, patient_of, shift_of
from index.errors import CannotDeidentify, NotFound

_ENCAPSULATED = "1.2.840.10008.5.1.4.1.1.104."
_VOICE = ("1.2.840.10008.5.1.4.1.1.9.4.1", "1.2.840.10008.5.1.4.1.1.9.4.2")
_ANSWER = "answer"


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
        reader = Reader(dataset, [])
        sop_class = _sop_class(dataset, reader)
        self._require_possible(sop_class)
        rectangles = pixels.require_clean(reader, sop_class, self.profile)
        try:
            made = self._walk(dataset, reader, sop_class, observe=observe).data_set(dataset)
        except RecursionError as error:
            raise CannotDeidentify("the object nests sequences too deeply") from error
        _take_over_source(made, dataset)
        marks.put(made, reader, self.profile, is_masked=bool(rectangles))
        syntax = str(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID", "") or "")
        if rectangles:
            syntax = pixels.mask(made, dataset, rectangles, syntax)
        if getattr(dataset, "file_meta", None) is not None:
            made.file_meta = _file_meta(made, sop_class, syntax)
        return made

    def deidentify_answer(self, dataset: Dataset) -> Dataset:
        """Return a C-FIND answer as the profile lets it out: the same keys, empty where an object would lose them.

        The pseudonym, and dates that are modified, follow from Patient ID and Issuer of Patient ID *in the answer*: give
        it both, also where the question did not ask for them. Without a Patient ID modified dates are empty.
        """
        reader = Reader(dataset, [])
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
        """Return the UID that stands for `original`: itself where the profile retains UIDs or the standard defines it."""
        return original if self.profile.has(Option.RETAIN_UIDS) else self._secret.uid(original)

    def pseudonym(self, issuer: str, patient_id: str) -> str:
        """Return the Patient ID that stands for `patient_id` of `issuer`; "" for an empty one."""
        return self._secret.pseudonym(issuer, patient_id)

    def keeps(self, tag: int) -> bool:
        """Whether values of a standard attribute pass unchanged, so that matching on them tells nothing new."""
        return self.profile.action(tag) is Action.KEEP

    def _require_possible(self, sop_class: str) -> None:
        if not sop_class:
            raise CannotDeidentify("the object has no SOP Class UID", element="SOPClassUID")
        if sop_class.startswith(_ENCAPSULATED):
            raise CannotDeidentify(f"{UID(sop_class).name}: what is in an encapsulated document cannot be checked")
        if sop_class in _VOICE:
            raise CannotDeidentify(f"{UID(sop_class).name}: what a recording says cannot be checked")
        if sop_class == MediaStorageDirectoryStorage:
            raise CannotDeidentify("a DICOMDIR lists files and is no object: make a new one of what was de-identified")

    def _walk(
        self, dataset: Dataset, reader: Reader, sop_class: str, *,
        is_answer: bool = False, observe: Callable[[Change], None] | None = None,
    ) -> Walk:  # fmt: skip
        patient = patient_of(reader)
        study = "" if is_answer else "".join(reader.texts(marks.STUDY_INSTANCE_UID))
        shift = shift_of(self._secret, patient, study) if self.profile.dates == "modified" else None
        cleans = self.profile.options & {Option.CLEAN_DESCRIPTORS, Option.CLEAN_STRUCTURED_CONTENT,
                                         Option.CLEAN_GRAPHICS, Option.RETAIN_PATIENT_CHARACTERISTICS}  # fmt: skip
        cleaner = Cleaner(identifiers_of(dataset)) if cleans else Cleaner()
        return Walk(
            self.profile, self._secret, sop_class, patient, shift, cleaner, Declarations.of(dataset),
            is_answer=is_answer, observe=observe,
        )  # fmt: skip


def _sop_class(dataset: Dataset, reader: Reader) -> str:
    """Return the SOP Class UID; some files have it in their File Meta Information only."""
    told = "".join(reader.texts(marks.SOP_CLASS_UID)).strip(" \0")
    return told or str(getattr(dataset, "file_meta", {}).get("MediaStorageSOPClassUID", "") or "").strip(" \0")


def _take_over_source(made: Dataset, source: Dataset) -> None:
    """Let values that were left in the file of `source` be read from there."""
    made.set_original_encoding(*source.original_encoding, source.original_character_set)
    for name in ("filename", "buffer", "fileobj_type", "timestamp"):
        if hasattr(source, name):
            setattr(made, name, getattr(source, name))


def _file_meta(made: Dataset, sop_class: str, syntax: str) -> FileMetaDataset:
    """Return File Meta Information that tells nothing of who sent or wrote the original (PS3.10 7.1)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = UID(str(made.get("SOPInstanceUID", "")))
    meta.TransferSyntaxUID = UID(syntax or ExplicitVRLittleEndian)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = implementation_version_name()
    return meta
