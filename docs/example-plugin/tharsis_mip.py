"""A plug-in for Tharsis: of each CT series a maximum intensity projection, as Secondary Capture in the same study."""

from typing import Any, Literal

import highdicom
import numpy as np
import scipy.ndimage
from pydantic import BaseModel, ConfigDict, Field
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from config.identity import derived_uid
from index.derivations import canonical
from plugins.hookspecs import JobFunction, hookimpl
from plugins.node import CannotProceed, Series, Task, Work
from plugins.publish import is_made, publish, record
from plugins.segmentation.segmenter import Volume
from plugins.segmentation.volume_reader import read_volume
from reconstruct.dicom_items import code, item_of

KIND = "mip"
VERSION = "1"  # raise it when the same series would give another picture


class MipSettings(BaseModel):
    """The table ``[plugins.settings.mip]``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    view: Literal["front", "left"] = Field("front", description="from where one looks at the patient")
    darkest_hu: float = Field(-200.0, description="shown black, HU")
    width_hu: float = Field(1700.0, gt=0.0, description="from black to white, HU")


@hookimpl
def own_settings() -> type[MipSettings]:
    """Say what the settings of the plug-in's own are."""
    return MipSettings


@hookimpl
def jobs_for_series(series: Series) -> list[Work]:
    """Project every CT series that may be a volume: one look at what is stored, no pixels."""
    is_volume = series.instances[0].sop_class_uid == CTImageStorage and len(series.instances) > 2
    return [Work(KIND, series.uid)] if is_volume else []


@hookimpl
def job_functions() -> dict[str, JobFunction]:
    """Name the one kind of job."""
    return {KIND: project}


def project(task: Task) -> None:
    """Project the task's series and store the picture, unless that has been done for what is stored now."""
    series, own = task.series(), task.own
    recipe = {"kind": KIND, "version": VERSION, **own.model_dump()}
    digest = series.digest
    if is_made(task.archive, series.uid, recipe, digest):
        return
    slices, volume = read_volume(series.paths)  # raises CannotProceed for what is no stack of slices
    task.progress(0.5)
    made = publish(task.archive, [secondary_capture(projected(volume, own), slices, recipe)])
    record(task.archive, series.uid, recipe, digest, [made])


def projected(volume: Volume, own: MipSettings) -> np.ndarray:
    """Return the grey values of the greatest HU along the lines of sight, head up, (row, column), square pixels."""
    steps = volume.placement.affine[:3, [2, 1, 0]] if volume.placement else np.zeros((3, 3))  # of x, y, z; LPS, mm
    if not volume.is_hu or list(steps[:, :2].argmax(axis=0)) != [0, 1]:
        raise CannotProceed("expected slices in HU, with rows to the left and columns to the back of the patient")
    z, y, x = volume.spacing_mm_zyx
    greatest = volume.values.max(axis=1 if own.view == "front" else 2)
    upright = greatest[::-1] if steps[2, 2] > 0 else greatest
    hu = scipy.ndimage.zoom(upright, (z / (x if own.view == "front" else y), 1.0), order=1)
    return np.round(255 * np.clip((hu - own.darkest_hu) / own.width_hu, 0.0, 1.0)).astype(np.uint8)


def secondary_capture(picture: np.ndarray, slices: list[Dataset], recipe: dict[str, Any]) -> Dataset:
    """Return the DICOM object; its UIDs follow from series and recipe, so that doing it again replaces it."""
    first, text = slices[0], canonical(recipe)
    uid = derived_uid(str(first.SeriesInstanceUID), text)
    image = highdicom.sc.SCImage.from_ref_dataset(
        first, picture, "MONOCHROME2", 8, "PATIENT", uid, 5000 + int(first.SeriesNumber or 0), derived_uid(uid, "1"), 1,
        "tharsis-mip", patient_orientation=("L", "F") if recipe["view"] == "front" else ("P", "F"),
        transfer_syntax_uid=ExplicitVRLittleEndian, series_description=f"Maximum intensity, {recipe['view']}",
    )  # fmt: skip
    image.ConversionType, image.BurnedInAnnotation, image.Laterality = "WSD", "NO", ""
    image.DerivationDescription = text
    image.DerivationCodeSequence = [code("113078", "DCM", "Maximum intensity projection")]
    image.SourceImageSequence = [
        item_of(
            ReferencedSOPClassUID=each.SOPClassUID,
            ReferencedSOPInstanceUID=each.SOPInstanceUID,
            PurposeOfReferenceCodeSequence=[code("121322", "DCM", "Source image for image processing operation")],
        )
        for each in slices
    ]
    return image
