"""The plug-in's own test: one series into an empty archive, one worker, one picture. No node, no network."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
import tharsis_mip
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from config.settings import load_settings
from index.archive import Archive
from plugins.found import Found
from plugins.manager import Plugins
from plugins.worker import Worker

SHAPE = (4, 6, 8)  # z, y, x
PLUGIN = Found("mip", "tharsis-mip", "1", "tharsis_mip", lambda: tharsis_mip)


def ct_slice(number: int, stored: np.ndarray) -> Dataset:
    """A slice 2 mm above the one before, of pixels of 1 mm; what is stored is HU."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, f"1.2.3.4.{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
    dataset.PatientID = dataset.StudyID = dataset.AccessionNumber = "1"
    dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = "Doe^Jane", "19700101", "F"
    dataset.StudyDate, dataset.StudyTime, dataset.Modality = "20240102", "101500", "CT"
    dataset.ReferringPhysicianName, dataset.SeriesNumber, dataset.InstanceNumber = "", 3, number
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 2.0 * number], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [1, 1], 2
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, 0, "HU"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation, dataset.PixelData = 15, 1, stored.astype(np.int16).tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.ensure_file_meta()
    return dataset


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """An archive with a dark volume in which one voxel of the highest slice is bright."""
    archive = Archive(tmp_path / "data", settle_time_s=0.0)
    volume = np.full(SHAPE, -1000)
    volume[-1, 2, 5] = 3000
    for number, stored in enumerate(volume, start=1):
        path = tmp_path / f"{number}.dcm"
        ct_slice(number, stored).save_as(path, enforce_file_format=True)
        archive.ingest(path)
    return archive


def work(archive: Archive, **own: object) -> list[Dataset]:
    """Let a worker do all there is to do, and return what the plug-in has made."""
    told = {"archive": {"data": archive.data}, "plugins": {"settings": {"mip": own}}}
    settings = load_settings(environment={}, overrides=told)
    plugins = Plugins(settings)
    plugins.add(PLUGIN)
    assert not plugins.left_out, plugins.left_out
    Worker(archive, settings, "test", plugins).run_until_idle()
    assert not archive.jobs.recent(states=("failed",))
    rows = archive.database.execute("SELECT path FROM instance WHERE sop_instance_uid NOT LIKE '1.2.3.4.%'")
    return [pydicom.dcmread(archive.data / path) for (path,) in rows]


@pytest.mark.parametrize(("view", "place"), [("front", (0, 5)), ("left", (0, 2))])
def test_the_bright_voxel_shines_through_at_its_place(archive: Archive, view: str, place: tuple[int, int]) -> None:
    (picture,) = work(archive, view=view)
    pixels = picture.pixel_array
    assert pixels.shape == (8, SHAPE[2] if view == "front" else SHAPE[1])  # 2 mm apart, drawn on pixels of 1 mm
    assert np.unravel_index(pixels.argmax(), pixels.shape) == place
    assert pixels.max() == 255


def test_the_picture_says_whose_it_is_and_what_it_was_made_of(archive: Archive) -> None:
    (picture,) = work(archive)
    assert (picture.PatientName, picture.StudyInstanceUID, picture.SeriesNumber) == ("Doe^Jane", "1.2.3", 5003)
    assert len(picture.SourceImageSequence) == SHAPE[0]
    assert '"view":"front"' in picture.DerivationDescription


def test_doing_it_again_makes_nothing_new(archive: Archive) -> None:
    (first,) = work(archive)
    archive.jobs.push("mip", "1.2.3.4")
    (second,) = work(archive)
    assert first.SOPInstanceUID == second.SOPInstanceUID
    archive.jobs.push("mip", "1.2.3.4")
    assert len(work(archive, view="left")) == 2, "other settings make another picture"
