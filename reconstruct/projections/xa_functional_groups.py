"""The functional groups of an Enhanced XA Image: what all frames share, and how the scanner stood in each view.

PS3.3 A.47.2, C.8.19.6.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from config.identity import derived_uid
from reconstruct.dicom_items import code, decimal, item_of
from reconstruct.geometry import ConeBeamGeometry
from reconstruct.projections.positioner import PositionerAngles
from reconstruct.projections.xa_modules import IMAGE_TYPE

_LETTERS = (("L", "R"), ("P", "A"), ("H", "F"))
_LEAST_COMPONENT = 0.1
"""A direction within 6° of a plane is not worth a letter across it."""


def shared_item(
    dataset: Dataset,
    geometry: ConeBeamGeometry,
    angles: PositionerAngles,
    slope: float,
    intercept: float,
) -> Dataset:
    """Return the functional groups that all frames of `dataset` share, and complete its detector module."""
    row_pitch = float(np.linalg.norm(geometry.row_steps, axis=1).mean())
    column_pitch = float(np.linalg.norm(geometry.column_steps, axis=1).mean())
    pitch = [decimal(row_pitch), decimal(column_pitch)]
    size = [geometry.rows * row_pitch, geometry.columns * column_pitch]
    dataset.DetectorElementSpacing = pitch
    dataset.PhysicalDetectorSize = size
    dataset.PositionOfIsocenterProjection = list(angles.principal_point_row_column)
    item = item_of(
        XRayGeometrySequence=[
            item_of(
                DistanceSourceToIsocenter=float(np.linalg.norm(geometry.sources, axis=1).mean()),
                DistanceSourceToDetector=decimal(float(geometry.source_to_detector_mm.mean())),
            )
        ],
        FramePixelDataPropertiesSequence=[
            item_of(
                FrameType=IMAGE_TYPE,
                ImagerPixelSpacing=pitch,
                PixelIntensityRelationship="LIN",
                PixelIntensityRelationshipSign=1,
                GeometricalProperties="UNIFORM",
                ImageProcessingApplied="NONE",
            )
        ],
        FieldOfViewSequence=[
            item_of(
                FieldOfViewShape="RECTANGLE",
                FieldOfViewDimensionsInFloat=size,
                FieldOfViewOrigin=[0, 0],
                FieldOfViewRotation="0",
                FieldOfViewHorizontalFlip="YES" if angles.mirrored else "NO",
                FieldOfViewDescription="whole detector",
            )
        ],
        FrameAnatomySequence=[
            item_of(
                AnatomicRegionSequence=[code("38266002", "SCT", "Entire body")],
                FrameLaterality="U",
            )
        ],
        FrameDetectorParametersSequence=[item_of(DetectorActiveTime=None)],
        IrradiationEventIdentificationSequence=[
            item_of(IrradiationEventUID=derived_uid(str(dataset.SOPInstanceUID), "irradiation event"))
        ],
        TablePositionSequence=[
            item_of(
                TableTopVerticalPosition=0,
                TableTopLongitudinalPosition=0,
                TableTopLateralPosition=0,
                TableHorizontalRotationAngle=0.0,
                TableHeadTiltAngle=0.0,
                TableCradleTiltAngle=0.0,
            )
        ],
        CollimatorShapeSequence=[
            item_of(
                CollimatorShape="RECTANGULAR",
                CollimatorLeftVerticalEdge=0,
                CollimatorRightVerticalEdge=geometry.columns + 1,
                CollimatorUpperHorizontalEdge=0,
                CollimatorLowerHorizontalEdge=geometry.rows + 1,
            )
        ],
        FrameVOILUTSequence=[item_of(WindowCenter=decimal(32767.5 * slope + intercept),
                                     WindowWidth=decimal(65536 * slope))],
    )
    if (slope, intercept) != (1.0, 0.0):
        item.PixelValueTransformationSequence = [
            item_of(RescaleIntercept=decimal(intercept), RescaleSlope=decimal(slope), RescaleType="US")
        ]
    return item


def view_item(geometry: ConeBeamGeometry, angles: PositionerAngles, view: int, table_z_mm: float = 0.0) -> Dataset:
    """Return the functional groups that say how scanner and table stood in a view."""
    primary, secondary = float(angles.primary_deg[view]), float(angles.secondary_deg[view])
    beam = float(np.rad2deg(np.arccos(abs(geometry.sources[view, 1]) / np.linalg.norm(geometry.sources[view]))))
    return item_of(
        IsocenterReferenceSystemSequence=[
            item_of(
                PositionerIsocenterPrimaryAngle=primary,
                PositionerIsocenterSecondaryAngle=secondary,
                PositionerIsocenterDetectorRotationAngle=float(angles.detector_rotation_deg[view]),
                TableXPositionToIsocenter=0.0,
                TableYPositionToIsocenter=0.0,
                TableZPositionToIsocenter=table_z_mm,
                TableHorizontalRotationAngle=0.0,
                TableHeadTiltAngle=0.0,
                TableCradleTiltAngle=0.0,
            )
        ],
        PositionerPositionSequence=[
            item_of(PositionerPrimaryAngle=decimal(primary), PositionerSecondaryAngle=decimal(secondary))
        ],
        ProjectionPixelCalibrationSequence=[
            item_of(DistanceObjectToTableTop=None, TableHeight=0, BeamAngle=beam)
        ],
        PatientOrientationInFrameSequence=[
            item_of(
                PatientOrientation=[
                    _direction(geometry.column_steps[view]),
                    _direction(geometry.row_steps[view]),
                ]
            )
        ],
    )


def _direction(step: NDArray[np.float64]) -> str:
    """Return the letters of PS3.3 C.7.6.1.1.1 for a direction in patient LPS, the largest component first."""
    unit = step / np.linalg.norm(step)
    letters = [positive if value > 0 else negative for value, (positive, negative) in zip(unit, _LETTERS, strict=True)]
    ordered = np.argsort(-np.abs(unit), kind="stable")
    return "".join(letters[axis] for axis in ordered if abs(unit[axis]) > _LEAST_COMPONENT)
