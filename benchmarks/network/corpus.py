"""What is sent: the same objects in every run, made from a template whose UIDs have a fixed width.

Each file holds a counter of the run in its UIDs. `Corpus.renew` sets it in place, so that the same bytes can be sent
to the same nodes as new instances, without writing gigabytes again.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.9.7133.7"
_RUN, _STUDY, _SERIES, _INSTANCE = "11111111", "22222222", "33333333", "44444444"
_UID = f"{ROOT}.{_RUN}.{_STUDY}.{_SERIES}.{_INSTANCE}"
_FIRST = 10_000_000
"""Numbers begin here, so that each has eight digits and no leading zero."""


@dataclass
class Corpus:
    """Files that are sent.

    Attributes
    ----------
    name
        What they are.
    files
        In the order in which they are sent: series by series.
    bytes_each
        Size of a data set, bytes.
    run
        Counter that their UIDs hold now.
    """

    name: str
    files: list[Path]
    bytes_each: int
    places: list[int]
    instances_a_study: int
    run: int = 0

    def renew(self, run: int) -> None:
        """Make them new instances of new studies of new patients."""
        digits = str(_FIRST + run).encode("ascii")
        for file in self.files:
            with file.open("r+b") as opened:
                for place in self.places:
                    opened.seek(place)
                    opened.write(digits)
        self.run = run

    def study_uids(self) -> list[str]:
        """Return the Study Instance UIDs of this run."""
        studies = -(-len(self.files) // self.instances_a_study)
        return [f"{ROOT}.{_FIRST + self.run}.{_FIRST + study}" for study in range(studies)]

    def series_uids(self) -> list[str]:
        """Return the Series Instance UIDs of this run, one for each study."""
        return [f"{study}.{_FIRST + 1}" for study in self.study_uids()]


def patient_id(run: int, study: int) -> str:
    """Return the Patient ID of a study of a run."""
    return f"{_FIRST + run}-{_FIRST + study}"


def make(
    folder: Path, name: str, count: int, *, side: int, frames: int = 1, instances_a_study: int = 100,
    study_date: str = "20260101", seed: int = 0,
) -> Corpus:
    """Write `count` images of `side` × `side` pixels of 16 bits, `frames` in each.

    A study has one series, and a patient of its own. Pixels are noise of 12 bits, so that nothing compresses them on
    the way; all files have the same ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    template = _template(side, frames, study_date)
    plane = np.random.default_rng(seed).integers(0, 4096, (side, side), np.uint16).tobytes()
    length = frames * len(plane)
    tail = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, length)
    places = {mark: _places(template, mark) for mark in (_RUN, _STUDY, _SERIES, _INSTANCE)}
    files = []
    for number in range(count):
        study, instance = divmod(number, instances_a_study)
        numbers = {_RUN: 0, _STUDY: study, _SERIES: 1, _INSTANCE: instance + 1}
        header = bytearray(template)
        for mark, value in numbers.items():
            for place in places[mark]:
                header[place : place + 8] = str(_FIRST + value).encode("ascii")
        files.append(folder / f"{number:06d}.dcm")
        with files[-1].open("wb") as file:
            file.write(header + tail)
            for _ in range(frames):
                file.write(plane)
    return Corpus(name, files, len(template) + len(tail) + length, places[_RUN], instances_a_study)


def _places(template: bytes, mark: str) -> list[int]:
    found, place = [], template.find(mark.encode("ascii"))
    while place >= 0:
        found.append(place)
        place = template.find(mark.encode("ascii"), place + 1)
    return found


def _request() -> Dataset:
    """Return what a modality knows from its worklist."""
    item = Dataset()
    item.RequestedProcedureID, item.ScheduledProcedureStepID = "1", "1"
    return item


def _procedure() -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "169069000", "SCT", "CT of chest"
    return item


def _template(side: int, frames: int, study_date: str) -> bytes:
    """Return a Part 10 file up to its Pixel Data, with marks where the numbers go."""
    image = Dataset()
    image.SOPClassUID = EnhancedCTImageStorage if frames > 1 else CTImageStorage
    image.SOPInstanceUID, image.SeriesInstanceUID = _UID, _UID.removesuffix(f".{_INSTANCE}")
    image.StudyInstanceUID = f"{ROOT}.{_RUN}.{_STUDY}"
    image.PatientID, image.PatientName = f"{_RUN}-{_STUDY}", f"Benchmark^{_STUDY}"
    image.PatientBirthDate, image.PatientSex = "19700101", "O"
    image.StudyDate, image.StudyTime, image.StudyID = study_date, "120000", "1"
    image.AccessionNumber, image.StudyDescription, image.ReferringPhysicianName = _STUDY, "Benchmark", "Nobody"
    image.Modality, image.SeriesNumber, image.InstanceNumber = "CT", 1, 1
    image.SeriesDescription, image.BodyPartExamined = "Noise", "CHEST"
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.SliceThickness, image.PixelSpacing = "1.0", ["0.5", "0.5"]
    image.ImagePositionPatient, image.ImageOrientationPatient = ["0", "0", "0"], ["1", "0", "0", "0", "1", "0"]
    image.FrameOfReferenceUID = f"{ROOT}.{_RUN}.{_STUDY}.9"
    image.RescaleIntercept, image.RescaleSlope = "-1024", "1"
    image.RequestAttributesSequence, image.ProcedureCodeSequence = [_request()], [_procedure()]
    image.Rows = image.Columns = side
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    if frames > 1:
        image.NumberOfFrames = frames
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = UID(image.SOPClassUID)
    image.file_meta.MediaStorageSOPInstanceUID = UID(_UID)
    buffer = BytesIO()
    image.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
