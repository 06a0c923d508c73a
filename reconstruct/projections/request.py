"""What the operator asked for, as private elements: both ways."""

from __future__ import annotations

from typing import Any

from reconstruct.filters import FILTERS
from reconstruct.projections.functional_groups import Attributes
from reconstruct.projections.quantities import name_of, quantities, quantity
from reconstruct.projections.scan import ReconstructionRequest, ScanError

_SMALLEST_VOXEL_MM = 1e-6
"""Voxels are to be larger than this, a nanometre: anything smaller is a wrong unit."""


def read_request(attributes: Attributes) -> ReconstructionRequest:
    """Return the request in the attributes of a frame; what is absent was not asked for.

    Raises
    ------
    ScanError
        A wrong number of values, an unknown filter, a size or a cut-off that cannot be.
    """
    voxel = quantities(attributes, "RequestedVoxelSize", 3, above=_SMALLEST_VOXEL_MM)
    matrix = quantities(attributes, "RequestedMatrix", 3, above=0)
    centre = quantities(attributes, "RequestedCentre", 3)
    cutoff = quantity(attributes, "RequestedCutoff", above=0)
    if cutoff is not None and cutoff > 1:
        raise ScanError(f"{name_of('RequestedCutoff')} is {cutoff:g}, expected at most 1")
    return ReconstructionRequest(
        voxel_mm_xyz=None if voxel is None else (voxel[0], voxel[1], voxel[2]),
        matrix_xyz=None if matrix is None else (int(matrix[0]), int(matrix[1]), int(matrix[2])),
        centre_mm_xyz=None if centre is None else (centre[0], centre[1], centre[2]),
        filter=_filter(str(attributes.get("RequestedFilter") or "")),
        cutoff=cutoff,
    )


def _filter(asked: str) -> str | None:
    name = asked.lower().replace("_", "-")
    if name and name not in FILTERS:
        raise ScanError(f"{name_of('RequestedFilter')} is {asked!r}, expected one of {', '.join(FILTERS)}")
    return name or None


def request_elements(request: ReconstructionRequest) -> dict[str, Any]:
    """Return the private elements of a request, by keyword; None where nothing was asked.

    The name of the filter becomes a CS: upper case, and no hyphen (PS3.5 table 6.2-1).
    """
    return {
        "RequestedVoxelSize": None if request.voxel_mm_xyz is None else list(request.voxel_mm_xyz),
        "RequestedMatrix": None if request.matrix_xyz is None else list(request.matrix_xyz),
        "RequestedCentre": None if request.centre_mm_xyz is None else list(request.centre_mm_xyz),
        "RequestedFilter": None if request.filter is None else request.filter.upper().replace("-", "_"),
        "RequestedCutoff": request.cutoff,
    }
