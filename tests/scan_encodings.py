"""One scan in every encoding, written from the specifications and not from the readers.

Each writer states where source and detector stand in the terms of its own standard, lets an analytic phantom cast its
shadow there, and stores that. A reader that misunderstands the standard sees another object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from config.site_mappings import SiteMapping
from reconstruct.geometry import ConeBeamGeometry
from reconstruct.part10 import with_file_meta
from reconstruct.phantoms import Ellipsoid, asymmetric, line_integrals
from reconstruct.projections.acquisition import Acquisition, CounterImages
from reconstruct.projections.p1_writer import write_p1
from reconstruct.projections.scan import CounterKind, EnergyBin

VIEWS, ROWS, COLUMNS = 45, 36, 44
SOURCE, DETECTOR = 200.0, 320.0
ROW_PITCH, COLUMN_PITCH = 1.3, 1.2
COLUMN, ROW = 20.75, 18.25
"""Where the central ray meets the image: off its centre, so that an offset with the wrong sign shows."""
OPEN_BEAM = 60_000.0
HALF_WIDTH_MM = 15.0

XA, CT, RT = "1.2.840.10008.5.1.4.1.1.12.1", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.481.1"
WORDS_SC = "1.2.840.10008.5.1.4.1.1.7.3"
Vector = Sequence[float] | np.ndarray

LEFT, POSTERIOR, HEAD = np.eye(3)


def phantom() -> tuple[Ellipsoid, ...]:
    return asymmetric(HALF_WIDTH_MM)


@dataclass
class Stand:
    """Source and detector axes of every view in patient LPS, mm; the central ray meets (column, row)."""

    sources: np.ndarray
    columns: np.ndarray
    rows: np.ndarray
    column: float = COLUMN
    row: float = ROW

    def geometry(self) -> ConeBeamGeometry:
        towards = self.sources / np.linalg.norm(self.sources, axis=1, keepdims=True)
        middle = (SOURCE - DETECTOR) * towards
        column_steps, row_steps = COLUMN_PITCH * self.columns, ROW_PITCH * self.rows
        shift = ((COLUMNS - 1) / 2 - self.column) * column_steps + ((ROWS - 1) / 2 - self.row) * row_steps
        return ConeBeamGeometry.from_vectors(
            self.sources, middle + shift, column_steps, row_steps, rows=ROWS, columns=COLUMNS
        )

    def integrals(self) -> np.ndarray:
        return line_integrals(phantom(), self.geometry())


def angles() -> np.ndarray:
    """Degrees, a full circle that begins nowhere in particular."""
    return 17.0 + 360.0 * np.arange(VIEWS) / VIEWS


def counts(integrals: np.ndarray) -> np.ndarray:
    return np.rint(OPEN_BEAM * np.exp(-integrals)).astype(np.uint16)


FLATS = np.full((3, ROWS, COLUMNS), OPEN_BEAM, np.uint16)


def image(pixels: np.ndarray, sop_class: str, number: int, **values: Any) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.11", "2.25.12"
    ds.PatientID, ds.PatientName, ds.Modality = "GOLD", "Golden^Phantom", "OT"
    ds.PatientBirthDate = ds.PatientSex = ds.StudyID = ds.AccessionNumber = ds.ReferringPhysicianName = None
    ds.StudyDate, ds.StudyTime, ds.SeriesNumber, ds.InstanceNumber = "20250314", "101500", 3, number
    ds.Manufacturer = "ACME"
    stack = pixels if pixels.ndim == 3 else pixels[None]
    if pixels.ndim == 3:
        ds.NumberOfFrames = len(pixels)
    ds.Rows, ds.Columns = stack.shape[1:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 0
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    ds.PixelData = np.ascontiguousarray(stack, "<u2").tobytes()
    ds["PixelData"].VR = "OW"
    return with_file_meta(ds)


def private(item: Dataset, group: int, creator: str, **values: tuple[int, str, Any]) -> None:
    block = item.private_block(group, creator, create=True)
    for offset, vr, value in values.values():
        block.add_new(offset, vr, value)


THARSIS = (0x0071, "THARSIS PROJECTION 1.0")


def p1(position: str = "HFS") -> list[Dataset]:
    """The circle about the patient's long axis as this node's own writer encodes it."""
    phi = np.deg2rad(angles())
    zero = np.zeros_like(phi)
    stand = Stand(
        SOURCE * np.stack([np.cos(phi), np.sin(phi), zero], 1),
        np.stack([-np.sin(phi), np.cos(phi), zero], 1),
        np.tile(HEAD, (VIEWS, 1)),
    )
    counter = CounterImages(EnergyBin(1), counts(stand.integrals()), FLATS)
    header = Dataset()
    header.StudyInstanceUID, header.SeriesInstanceUID, header.PatientID = "2.25.11", "2.25.12", "GOLD"
    header.StudyDate, header.StudyTime = "20250314", "101500"
    return write_p1([counter], stand.geometry(), header, Acquisition(counter_kind=CounterKind.DIFFERENTIAL))


def angiographic() -> tuple[np.ndarray, Stand]:
    """PS3.3 C.8.7.5.1.2: at 0 the detector is before the chest, at +90 on the left side; seen from the detector."""
    primary = angles()
    a = np.deg2rad(primary)[:, None]
    detector = np.cos(a) * -POSTERIOR + np.sin(a) * LEFT
    right_of_the_viewer = np.cross(-detector, HEAD)
    return primary, Stand(-SOURCE * detector, right_of_the_viewer, np.tile(-HEAD, (VIEWS, 1)), 21.5, 17.5)


def _xa(pixels: np.ndarray, number: int, **values: Any) -> Dataset:
    return image(
        pixels, XA, number, DistanceSourceToPatient=SOURCE, DistanceSourceToDetector=DETECTOR,
        ImagerPixelSpacing=[ROW_PITCH, COLUMN_PITCH], PixelIntensityRelationship="LIN", **values,
    )  # fmt: skip


def p2(position: str = "HFS") -> list[Dataset]:
    """One rotational run with increments, and its flat fields."""
    primary, stand = angiographic()
    run = _xa(
        counts(stand.integrals()), 1, PatientPosition=position, PositionerMotion="DYNAMIC",
        PositionerPrimaryAngle=round(float(primary[0]), 3), PositionerSecondaryAngle=0,
        PositionerPrimaryAngleIncrement=[round(float(angle), 3) for angle in primary - primary[0]],
        PositionerSecondaryAngleIncrement=[0] * VIEWS, ImageType=["ORIGINAL", "PRIMARY", "SINGLE PLANE"],
    )  # fmt: skip
    return [run, _xa(FLATS, 2, ImageType=["ORIGINAL", "PRIMARY", "SINGLE PLANE", "FLAT"])]


def p2_series(position: str = "HFS") -> list[Dataset]:
    """The same run as a series of single images."""
    primary, stand = angiographic()
    views = [
        _xa(frame, number, PatientPosition=position, PositionerPrimaryAngle=round((float(angle) + 180) % 360 - 180, 3))
        for number, (frame, angle) in enumerate(zip(counts(stand.integrals()), primary, strict=True), start=1)
    ]
    return [*views, _xa(FLATS, VIEWS + 1, ImageType=["ORIGINAL", "PRIMARY", "FLAT"])]


def _ct_pd_to_lps(points: np.ndarray, position: str) -> np.ndarray:
    """From x right, y up, z into the gantry, seen from its front, to the patient."""
    x, y, z = np.moveaxis(points, -1, 0)
    if position == "HFS":
        return np.stack([x, -y, z], axis=-1)
    assert position == "FFS"
    return np.stack([-x, -y, -z], axis=-1)


def _ct_pd(position: str, *, curved: bool, flying: bool) -> list[Dataset]:
    phi = np.deg2rad(angles())
    zero = np.zeros_like(phi)
    shifts = np.zeros((VIEWS, 3))
    if flying:
        shifts[::2] = (4.0, 0.004, 0.6)  # radial mm, angular rad, axial mm: every other view
    radius, turned = SOURCE + shifts[:, 0], phi + shifts[:, 1]
    source = np.stack([-radius * np.sin(turned), radius * np.cos(turned), shifts[:, 2]], 1)
    centre = np.stack([-SOURCE * np.sin(phi), SOURCE * np.cos(phi), zero], 1)
    inwards, along = -centre / SOURCE, np.stack([np.cos(phi), np.sin(phi), zero], 1)
    axis = np.array([0.0, 0.0, 1.0])
    columns = (np.arange(COLUMNS) - COLUMN) * COLUMN_PITCH
    fan = columns / DETECTOR if curved else np.arctan(columns / DETECTOR)
    reach = np.full(COLUMNS, DETECTOR) if curved else DETECTOR / np.cos(fan)
    # A detector of one column for every column: it may then lie on any curve.
    points = centre[:, None] + reach[None, :, None] * (
        np.cos(fan)[None, :, None] * inwards[:, None] + np.sin(fan)[None, :, None] * along[:, None]
    )
    points = points + ((ROWS - 1) / 2 - ROW) * ROW_PITCH * axis
    one_by_one = ConeBeamGeometry.from_vectors(
        _ct_pd_to_lps(np.repeat(source, COLUMNS, axis=0), position),
        _ct_pd_to_lps(points.reshape(-1, 3), position),
        _ct_pd_to_lps(np.repeat(COLUMN_PITCH * along, COLUMNS, axis=0), position),
        _ct_pd_to_lps(np.tile(ROW_PITCH * axis, (VIEWS * COLUMNS, 1)), position),
        rows=ROWS, columns=1,
    )  # fmt: skip
    integrals = line_integrals(phantom(), one_by_one).reshape(VIEWS, COLUMNS, ROWS)
    slope = 2.0 / 65535
    datasets = []
    for view in range(VIEWS):
        stored = np.rint(integrals[view] / slope).astype(np.uint16)  # column by column
        ds = image(stored, CT, view + 1, PatientPosition=position, RescaleSlope=slope, RescaleIntercept=0)
        private(
            ds, 0x7029, "DetectorSystemArrangementModule", transverse=(0x02, "FL", COLUMN_PITCH),
            axial=(0x06, "FL", ROW_PITCH), shape=(0x0B, "CS", "CYLINDRICAL" if curved else "FLAT"),
            rows=(0x10, "US", ROWS), columns=(0x11, "US", COLUMNS),
        )  # fmt: skip
        private(
            ds, 0x7031, "DetectorDynamicsModule", angle=(0x01, "FL", float(phi[view])), z=(0x02, "FL", 0.0),
            radius=(0x03, "FL", SOURCE), constant=(0x31, "FL", DETECTOR), central=(0x33, "FL", [COLUMN + 1, ROW + 1]),
        )  # fmt: skip
        if flying:
            private(
                ds, 0x7033, "SourceDynamicsModule", angular=(0x0B, "FL", float(shifts[view, 1])),
                axial=(0x0C, "FL", float(shifts[view, 2])), radial=(0x0D, "FL", float(shifts[view, 0])),
            )  # fmt: skip
        private(ds, 0x7037, "ProjectionDataModule", kind=(0x09, "CS", "AXIAL"))
        private(
            ds, 0x7039, "PreprocessingFlagsModule", dark=(0x05, "CS", "YES"), flat=(0x06, "CS", "YES"),
            log=(0x09, "CS", "YES"),
        )  # fmt: skip
        private(ds, 0x7041, "WaterAttenuationModule", water=(0x01, "DS", "0.02"))
        datasets.append(ds)
    return datasets


def p3(position: str = "HFS") -> list[Dataset]:
    """A plane detector."""
    return _ct_pd(position, curved=False, flying=False)


def p3_curved(position: str = "HFS") -> list[Dataset]:
    """A cylinder about a focal spot that flies."""
    return _ct_pd(position, curved=True, flying=True)


def tilted() -> Stand:
    """A circle whose columns run against the angle, and whose rows run towards the feet."""
    phi = np.deg2rad(angles())
    zero = np.zeros_like(phi)
    return Stand(
        SOURCE * np.stack([np.cos(phi), np.sin(phi), zero], 1),
        np.stack([np.sin(phi), -np.cos(phi), zero], 1),
        np.tile(-HEAD, (VIEWS, 1)),
    )


def _vectors(geometry: ConeBeamGeometry, view: int) -> dict[str, tuple[int, str, Any]]:
    return {
        "source": (0x12, "FD", geometry.sources[view].tolist()),
        "centre": (0x13, "FD", geometry.detector_centres[view].tolist()),
        "column": (0x14, "FD", geometry.column_steps[view].tolist()),
        "row": (0x15, "FD", geometry.row_steps[view].tolist()),
    }


def p4(position: str = "HFS") -> list[Dataset]:
    """CT images, one a view, with the private vectors; flats with nothing but their role."""
    stand = tilted()
    datasets = []
    for view, frame in enumerate(counts(stand.integrals())):
        ds = image(frame, CT, view + 1, PatientPosition=position)
        private(ds, *THARSIS, role=(0x10, "CS", "PROJECTION"), **_vectors(stand.geometry(), view))
        datasets.append(ds)
    for number, frame in enumerate(FLATS):
        ds = image(frame, CT, VIEWS + 1 + number)
        private(ds, *THARSIS, role=(0x10, "CS", "FLAT"))
        datasets.append(ds)
    return datasets


def p4_multi_frame(position: str = "HFS") -> list[Dataset]:
    """A multi-frame secondary capture with an item for each frame."""
    stand = tilted()
    ds = image(np.concatenate([counts(stand.integrals()), FLATS]), WORDS_SC, 1, PatientPosition=position)
    items = []
    for frame in range(VIEWS + len(FLATS)):
        item = Dataset()
        if frame < VIEWS:
            private(item, *THARSIS, role=(0x10, "CS", "PROJECTION"), **_vectors(stand.geometry(), frame))
        else:
            private(item, *THARSIS, role=(0x10, "CS", "FLAT"))
        items.append(item)
    ds.PerFrameFunctionalGroupsSequence = items
    return [ds]


def _iec_to_lps(points: np.ndarray, position: str) -> np.ndarray:
    """From IEC 61217 fixed (x to the right of who faces the gantry, y to the gantry, z up) to the patient."""
    x, y, z = np.moveaxis(points, -1, 0)
    if position == "HFS":
        return np.stack([x, -z, y], axis=-1)
    assert position == "FFS"
    return np.stack([-x, -z, -y], axis=-1)


def p5(position: str = "HFS") -> list[Dataset]:
    """A linear accelerator: the gantry turns clockwise, images are seen from the source."""
    theta = np.deg2rad(angles())
    zero = np.zeros_like(theta)
    gantry_x = np.stack([np.cos(theta), zero, -np.sin(theta)], 1)
    gantry_y = np.tile([0.0, 1.0, 0.0], (VIEWS, 1))
    source = SOURCE * np.stack([np.sin(theta), zero, np.cos(theta)], 1)
    stand = Stand(*(_iec_to_lps(part, position) for part in (source, gantry_x, -gantry_y)))

    def portal(pixels: np.ndarray, number: int, **values: Any) -> Dataset:
        return image(
            pixels, RT, number, PatientPosition=position, RadiationMachineSAD=SOURCE, RTImageSID=DETECTOR,
            RTImagePlane="NORMAL", XRayImageReceptorTranslation=[0, 0, SOURCE - DETECTOR], XRayImageReceptorAngle=0,
            RTImageOrientation=[1, 0, 0, 0, -1, 0], ImagePlanePixelSpacing=[ROW_PITCH, COLUMN_PITCH],
            RTImagePosition=[-COLUMN * COLUMN_PITCH, ROW * ROW_PITCH], PatientSupportAngle=0,
            PixelIntensityRelationship="LIN", PixelIntensityRelationshipSign=1, **values,
        )  # fmt: skip

    views = [
        portal(frame, number, ImageType=["ORIGINAL", "PRIMARY", "PORTAL"], GantryAngle=round(float(angle) % 360, 3))
        for number, (frame, angle) in enumerate(zip(counts(stand.integrals()), angles(), strict=True), start=1)
    ]
    return [*views, portal(FLATS[0], VIEWS + 1, ImageType=["ORIGINAL", "PRIMARY", "PORTAL", "FLAT"])]


def p6(position: str = "HFS") -> list[Dataset]:
    """A scanner with elements of its own: a stage that turns the other way, in hundredths of a degree from the left."""
    stand = tilted()
    datasets = []
    for view, frame in enumerate(counts(stand.integrals())):
        ds = image(frame, CT, view + 1, PatientPosition=position)
        private(ds, 0x0029, "ACME CT", stage=(0x10, "UL", round(float(-angles()[view] % 360) * 100)))
        datasets.append(ds)
    return datasets


SITE = SiteMapping.model_validate(
    {
        "name": "room 3",
        "creator": "ACME CT",
        # φ from the left is the isocentre's primary angle plus 90 degrees, and the stage counts down.
        "angle": {
            "element": "(0029,xx10)", "creator": "ACME CT", "vr": "UL", "unit": "deg", "scale": -0.01, "offset": -90.0,
        },
        "source_to_isocentre": {"value": 20.0, "unit": "cm"},
        "source_to_detector": {"value": DETECTOR, "unit": "mm"},
        "pitch_row": {"value": 1000 * ROW_PITCH, "unit": "um"},
        "pitch_column": {"value": COLUMN_PITCH, "unit": "mm"},
        "principal_row": {"value": ROW, "unit": "px"},
        "principal_column": {"value": COLUMN, "unit": "px"},
        "unattenuated": {"value": OPEN_BEAM, "unit": ""},
        "seen_from_source": False,
    }
)  # fmt: skip

WRITERS: dict[str, Callable[[str], list[Dataset]]] = {
    "P1": p1,
    "P2": p2,
    "P2-series": p2_series,
    "P3": p3,
    "P3-curved": p3_curved,
    "P4": p4,
    "P4-multi-frame": p4_multi_frame,
    "P5": p5,
    "P6": p6,
}
