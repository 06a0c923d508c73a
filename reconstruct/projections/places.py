"""Where an encoding keeps the numbers of a view: for each quantity the elements that may hold it, by precedence."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum


class Level(StrEnum):
    """How much an element counts: of two that say the same quantity the earlier is taken, and the other compared."""

    STANDARD = "standard attributes"
    PRIVATE = "private scalars"
    CT_PD = "CT-PD elements"
    SITE = "site mapping"


@dataclass(frozen=True)
class Place:
    """One element that may hold a quantity.

    Attributes
    ----------
    keyword
        Under which the attributes of a frame have it.
    level
        Its precedence.
    scale, offset
        Quantity = scale × value + offset, in degrees, mm or pixels of the convention of `view_geometry`.
    """

    keyword: str
    level: Level = Level.STANDARD
    scale: float = 1.0
    offset: float = 0.0


class Quantity(tuple[Place, ...]):
    """The places of one quantity, by precedence."""

    __slots__ = ()

    def of(self, level: Level) -> Quantity:
        """Return the places of one level."""
        return Quantity(place for place in self if place.level is level)

    def preferring(self, level: Level) -> Quantity:
        """Return the same places with those of `level` first."""
        return Quantity(sorted(self, key=lambda place: place.level is not level))


def _quantity(*standard: Place | str, private: str = "", ct_pd: Place | None = None, site: str = "") -> Quantity:
    places = [place if isinstance(place, Place) else Place(place) for place in standard]
    if private:
        places.append(Place(private, Level.PRIVATE))
    if ct_pd is not None:
        places.append(ct_pd)
    if site:
        places.append(Place(site, Level.SITE))
    return Quantity(places)


@dataclass(frozen=True)
class Places:
    """Where each quantity may stand in one encoding; the first place that a view has is taken.

    Attributes
    ----------
    angle, secondary_angle
        Positioner isocentre angles, degrees (PS3.3 C.8.19.6.13.1.2).
    source_to_isocentre, source_to_detector
        Distances, mm.
    pitch
        Row and column pitch, mm.
    principal_point
        Column and row, 0-based, where the ray through the isocentre meets the image.
    turn
        Rotation of the detector, degrees, clockwise seen towards the source.
    tilt
        Of the detector, degrees: about the column direction, the row direction, the central ray; `turn` goes before the
        last.
    travel
        Axial position of the sample, mm.
    seen_from_source
        Whether columns run from left to right seen from the source, and not towards it.
    rows_up
        Whether rows run from foot to head, and not from top to bottom.
    patient_axes
        Whether angles are given about the patient and not about the table.
    """

    angle: Quantity
    secondary_angle: Quantity
    source_to_isocentre: Quantity
    source_to_detector: Quantity
    pitch: Quantity
    principal_point: Quantity
    turn: Quantity
    tilt: Quantity
    travel: Quantity
    seen_from_source: bool = False
    rows_up: bool = False
    patient_axes: bool = False

    @property
    def required(self) -> tuple[Quantity, ...]:
        """The quantities without a default."""
        return self.angle, self.source_to_isocentre, self.source_to_detector, self.pitch

    @property
    def all(self) -> tuple[Quantity, ...]:
        """All quantities."""
        return (*self.required, self.secondary_angle, self.principal_point, self.turn, self.tilt, self.travel)

    def preferring(self, level: Level) -> Places:
        """Return the same places with those of `level` first."""
        names = (
            "angle", "secondary_angle", "source_to_isocentre", "source_to_detector", "pitch", "principal_point", "turn",
            "tilt", "travel",
        )  # fmt: skip
        return replace(self, **{name: getattr(self, name).preferring(level) for name in names})


ISOCENTRE_PLACES = Places(
    angle=_quantity("PositionerIsocenterPrimaryAngle", private="ViewAngle", site="SiteAngle"),
    secondary_angle=_quantity("PositionerIsocenterSecondaryAngle", site="SiteSecondaryAngle"),
    source_to_isocentre=_quantity("DistanceSourceToIsocenter", "DistanceSourceToPatient", site="SiteSourceToIsocentre"),
    source_to_detector=_quantity("DistanceSourceToDetector", site="SiteSourceToDetector"),
    pitch=_quantity("ImagerPixelSpacing", "DetectorElementSpacing", site="SitePitch"),
    principal_point=_quantity("PositionOfIsocenterProjection", private="PrincipalPoint", site="SitePrincipalPoint"),
    turn=_quantity("PositionerIsocenterDetectorRotationAngle"),
    tilt=_quantity(private="DetectorTilt", site="SiteTilt"),
    travel=_quantity("TableZPositionToIsocenter", "TablePosition", private="AxialSamplePosition", site="SiteTravel"),
)
"""P1 and P4: the isocentre reference system (PS3.3 C.8.19.6.13), the private block behind it."""

POSITIONER_PLACES = replace(
    ISOCENTRE_PLACES,
    angle=_quantity("PositionerPrimaryAngle", private="ViewAngle", site="SiteAngle"),
    secondary_angle=_quantity("PositionerSecondaryAngle", site="SiteSecondaryAngle"),
    travel=_quantity(
        "TableZPositionToIsocenter", "TablePosition", "TableLateralIncrement", private="AxialSamplePosition",
        site="SiteTravel",
    ),
    patient_axes=True,
)
"""P2: the positioner turns about the patient (PS3.3 C.8.7.5.1.2)."""

GANTRY_PLACES = replace(
    ISOCENTRE_PLACES,
    # IEC 61217: the gantry stands at 0 above the patient, and turns clockwise seen from the foot of the table.
    angle=_quantity(Place("GantryAngle", offset=-180.0), private="ViewAngle", site="SiteAngle"),
    secondary_angle=_quantity(site="SiteSecondaryAngle"),
    source_to_isocentre=_quantity("RadiationMachineSAD", "DistanceSourceToIsocenter", site="SiteSourceToIsocentre"),
    source_to_detector=_quantity("RTImageSID", "DistanceSourceToDetector", site="SiteSourceToDetector"),
    pitch=_quantity("ImagePlanePixelSpacing", "ImagerPixelSpacing", site="SitePitch"),
    principal_point=_quantity("ImagePrincipalPoint", private="PrincipalPoint", site="SitePrincipalPoint"),
    turn=_quantity("ImageTurn"),
    seen_from_source=True,
)
"""P5: a linear accelerator, whose images are seen from the source (PS3.3 C.8.8.2)."""

CT_PD_PLACES = replace(
    ISOCENTRE_PLACES,
    # At 0 the focal spot stands at 12 o'clock; x = -ρ sin φ, y = ρ cos φ, and y points up.
    angle=_quantity(
        private="ViewAngle",
        ct_pd=Place("CTPDAngle", Level.CT_PD, scale=-math.degrees(1), offset=180.0),
        site="SiteAngle",
    ),
    secondary_angle=_quantity(site="SiteSecondaryAngle"),
    source_to_isocentre=_quantity(ct_pd=Place("CTPDRadialDistance", Level.CT_PD), site="SiteSourceToIsocentre"),
    source_to_detector=_quantity(ct_pd=Place("CTPDConstantRadialDistance", Level.CT_PD), site="SiteSourceToDetector"),
    pitch=_quantity(ct_pd=Place("CTPDSpacing", Level.CT_PD), site="SitePitch"),
    principal_point=_quantity(
        private="PrincipalPoint", ct_pd=Place("CTPDCentralElement", Level.CT_PD, offset=-1.0), site="SitePrincipalPoint"
    ),
    turn=Quantity(),
    # The focal spot moves, and the patient stays.
    travel=_quantity(
        private="AxialSamplePosition", ct_pd=Place("CTPDAxialPosition", Level.CT_PD, scale=-1.0), site="SiteTravel"
    ),
    seen_from_source=True,
    rows_up=True,
)
"""P3: the CT gantry of DICOM-CT-PD."""
