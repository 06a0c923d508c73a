"""What the learned segmenter finds, beside the classical one: ``python benchmarks/segmentation.py SHARED_DATA``.

CT with the organs of TotalSegmentator's examples (NIfTI and DICOM) goes into archives as CT and SEG. `tharsis
train-segmenter` learns from one patient's volume, of which blocks of slices are held out, and is judged on these and on
a second patient, of whom it has seen nothing. The classical segmenter is judged on the same, and its tissues on the
whole volumes. Prints tables in Markdown; the exit code is 1 when the interval of the learned segmenter's mean Dice over
the large classes of the held-out slices does not lie above that of the classical one.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from commands.segmenter_data import collect, pairs_of
from commands.segmenter_judgement import Judgement, judge
from commands.segmenter_run import Wishes, run_training
from commands.segmenter_training import HoldOut
from config.identity import derived_uid
from index.archive import Archive
from plugins.segmentation.classical import Classical
from plugins.segmentation.learned import models, weights
from plugins.segmentation.learned.examples import Example, Examples
from plugins.segmentation.learned.losses import UNKNOWN
from plugins.segmentation.seg_object import seg_object
from plugins.segmentation.segmenter import Algorithm, Segmentation, Volume
from plugins.segmentation.totalsegmentator_codes import segment_for
from plugins.segmentation.volume_reader import read_on_grid

FILES = Path("TotalSegmentator/tests/reference_files")
ALGORITHM = Algorithm("TotalSegmentator", "2", Code("123110", "DCM", "Artificial Intelligence"), {})
BONES = re.compile("vertebrae|rib_|hip_|sacrum|femur|sternum|scapula|clavicula|humerus|skull")
TISSUES = {
    "Bone": BONES,
    "Lung": re.compile("lung_"),
}
"""Segments of the classical segmenter, and the structures that are of such tissue."""


def nifti(file: Path) -> SimpleITK.Image:
    """Read a volume with its first axis from right to left, the second from front to back, the third upwards."""
    return SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(file)), "LPS")


def structures(file: Path) -> dict[int, str]:
    """Return label → structure, from the extension of a NIfTI header."""
    text = gzip.decompress(file.read_bytes())[:200_000].decode("latin-1")
    return {int(number): name for number, name in re.findall(r'Key="(\d+)".*?CDATA\[(.*?)\]', text)}


def ct_of(image: SimpleITK.Image, name: str) -> Iterator[Dataset]:
    """Yield the slices of a volume in HU as CT images."""
    values = SimpleITK.GetArrayFromImage(image)
    x, y, z = image.GetSpacing()
    direction = np.reshape(image.GetDirection(), (3, 3))
    for number, pixels in enumerate(values):
        dataset = Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, derived_uid("benchmark", name, str(number))
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = derived_uid("study", name), derived_uid("series", name)
        dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = derived_uid("frame", name), ""
        dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = name, f"{name}^", "", ""
        dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber, dataset.StudyID = "20240102", "101500", "", "1"
        dataset.ReferringPhysicianName, dataset.Modality, dataset.SeriesNumber = "", "CT", 1
        dataset.InstanceNumber, dataset.ImageType = number + 1, ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.PixelSpacing, dataset.SliceThickness = [y, x], z
        dataset.ImageOrientationPatient = [round(float(v), 6) for v in (*direction[:, 0], *direction[:, 1])]
        dataset.ImagePositionPatient = [
            round(float(v), 4) for v in image.TransformIndexToPhysicalPoint((0, 0, number))
        ]
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, 0, "HU"
        dataset.PixelData = pixels.clip(-32768, 32767).astype("<i2").tobytes()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        yield dataset


def store(archive: Archive, dataset: Dataset) -> None:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    archive.ingest(buffer.getvalue())


def store_labels(archive: Archive, paths: list[Path], labels: Path) -> None:
    """Store the labels of a NIfTI file as SEG on the grid of CT files."""
    images, grid, volume = read_on_grid(paths)
    steps = grid.placement.affine
    reference = SimpleITK.Image([int(count) for count in reversed(grid.shape_zyx)], SimpleITK.sitkUInt8)
    reference.SetOrigin(steps[:3, 3].tolist())
    reference.SetSpacing([float(mm) for mm in reversed(grid.spacing_mm_zyx)])
    reference.SetDirection((steps[:3, 2::-1] / np.linalg.norm(steps[:3, 2::-1], axis=0)).ravel().tolist())
    found = SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(nifti(labels), reference, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor)
    )
    if found.shape != volume.values.shape or not found.any():
        raise SystemExit(f"{labels} does not lie on its CT")
    names = structures(labels)
    present = [int(number) for number in np.unique(found) if number]
    table = np.zeros(256, np.uint8)
    table[present] = np.arange(1, len(present) + 1)
    made = Segmentation(table[found.astype(np.uint8)], tuple(segment_for(names[n]) for n in present), ALGORITHM)
    store(archive, seg_object(made, images, recipe="benchmark"))


def first_patient(folder: Path, data: Path) -> Archive:
    """An archive of the volume of 112 slices, 3 mm, from the liver to the thighs, and its 61 structures."""
    archive = Archive(data, settle_time_s=0.0)
    image = nifti(folder / "example_ct.nii.gz")
    for dataset in ct_of(image, "first"):
        store(archive, dataset)
    store_labels(archive, _ct_files(archive), folder / "example_seg_fast_force_split.nii.gz")
    return archive


def second_patient(folder: Path, data: Path) -> Archive:
    """An archive of the 20 slices, 2 mm, that come as DICOM, and their structures."""
    archive = Archive(data, settle_time_s=0.0)
    for file in sorted((folder / "example_ct_dicom").iterdir()):
        dataset = dcmread(file)  # without the UIDs and names of a patient and a study
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, dataset.file_meta.MediaStorageSOPInstanceUID
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = derived_uid("study", "2"), derived_uid("series", "2")
        dataset.FrameOfReferenceUID, dataset.PatientID, dataset.PatientName = derived_uid("frame", "2"), "second", "^"
        for keyword in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID"):
            setattr(dataset, keyword, dataset.get(keyword) or "")
        dataset.ReferringPhysicianName, dataset.PositionReferenceIndicator = "", ""
        store(archive, dataset)
    store_labels(archive, _ct_files(archive), folder / "example_seg_dicom.nii.gz")
    return archive


def _ct_files(archive: Archive) -> list[Path]:
    rows = archive.database.execute("SELECT path FROM instance WHERE sop_class_uid = ?", (CTImageStorage,)).fetchall()
    return [archive.files.path(stored) for (stored,) in rows]


def on_second(archive: Archive, trained: weights.Trained, training: Examples) -> Judgement:
    """Judge a segmenter on a patient of another archive, by the classes that it knows."""
    names = {each.key: number for number, each in enumerate(trained.classes, start=1)}
    told = collect(pairs_of(archive), trained.spacing_mm, trained.reach_mm)
    table = np.full(256, UNKNOWN, np.uint8)
    table[0] = 0
    for number, each in enumerate(told.classes, start=1):
        table[number] = names.get(each.key, 0)
    volumes: tuple[Example, ...] = tuple(
        replace(
            volume,
            truth=table[volume.truth],
            is_told=np.ones((len(volume.truth), 1 + len(trained.classes)), np.bool_),
        )
        for volume in told.volumes
    )
    own = Examples(trained.classes, volumes)
    return judge(trained, own, own, training, trained.spacing_mm)


def tissues(archive: Archive, labels: Path) -> dict[str, float]:
    """Return tissue → Dice coefficient of the classical segmenter over the structures that are of it."""
    _, _, volume = read_on_grid(_ct_files(archive))
    found = Classical(1.0, 1.0).segment(volume, lambda _done: None)
    (pair,) = pairs_of(archive)
    names = structures(labels)
    scores = {}
    truth = _truth(pair.annotations[0].path, volume)
    for tissue, pattern in TISSUES.items():
        wanted = np.isin(truth[0], [number for number, label in truth[1].items() if pattern.search(label)])
        own = np.isin(
            found.labels,
            [number for number, each in enumerate(found.segments, start=1) if each.label.startswith(tissue)],
        )
        if wanted.any() and names:
            scores[tissue] = 2.0 * float((own & wanted).sum()) / float(own.sum() + wanted.sum())
    return scores


def _truth(seg: Path, volume: Volume) -> tuple[npt.NDArray[np.uint8], Mapping[int, str]]:
    from plugins.segmentation.seg_object import read_labels

    dataset = dcmread(seg)
    labels = {int(item.SegmentNumber): str(item.SegmentLabel) for item in dataset.SegmentSequence}
    shape = volume.values.shape
    return read_labels(dataset, (shape[0], shape[1], shape[2])), labels


def row(name: str, judgement: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    lines = []
    for which in ("large", "all"):
        told = [judgement[f"dice_{which}"][who] for who in ("learned", "classical")]
        cells = [_cell(own) for own in told]
        lines.append(f"| {name} | {which} | {' | '.join(cells)} |")
    return lines


def _cell(figure: Mapping[str, float]) -> str:
    interval = f" ({figure['low']:.3f}–{figure['high']:.3f})" if figure["low"] < figure["high"] else ""
    return f"{figure['value']:.3f}{interval}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="folder of the shared test data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--data", type=Path, help="keep the archives there")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures of the report")
    options = parser.parse_args()
    folder = options.shared / FILES
    with tempfile.TemporaryDirectory() as temporary:
        work = options.data or Path(temporary)
        first = first_patient(folder, work / "first")
        second = second_patient(folder, work / "second")
        started = time.monotonic()
        run_training(
            first,
            Wishes(None, HoldOut.SLICES, 0.25, None, options.seed, "small", options.epochs, 0, False, options.pictures),
        )
        seconds = time.monotonic() - started
        model = models.trained(first.data)[-1]
        file = models.weights_file(first.data, model)
        facts = json.loads(file.with_suffix(".json").read_text())
        trained = weights.load(file, models.digest_of(model))
        whole = collect(pairs_of(first), trained.spacing_mm, trained.reach_mm)
        other = on_second(second, trained, whole)
        if options.pictures:
            shutil.copy(file.with_suffix(".json"), options.pictures)
        print(f"\n{facts['training_slices']} slices, seed {options.seed}: trained and judged in {seconds:.0f} s\n")
        print("| judged on | classes | learned | classical, best segment |\n|---|---|---|---|")
        print("\n".join(row(f"held-out slices ({facts['held_out_slices']})", facts)))
        means = {
            f"dice_{which}": {"learned": vars(own), "classical": vars(best)}
            for which, (own, best) in other.means.items()
        }
        print("\n".join(row("another patient (20)", means)))
        print("\n| classical segmenter | Bone | Lung |\n|---|---|---|")
        for name, archive, labels in (
            ("first patient", first, "example_seg_fast_force_split.nii.gz"),
            ("second patient", second, "example_seg_dicom.nii.gz"),
        ):
            scores = tissues(archive, folder / labels)
            print(f"| {name} | " + " | ".join(f"{scores[t]:.3f}" if t in scores else "none" for t in TISSUES) + " |")
        large = facts["dice_large"]
        return 0 if large["learned"]["low"] > large["classical"]["high"] else 1


if __name__ == "__main__":
    sys.exit(main())
