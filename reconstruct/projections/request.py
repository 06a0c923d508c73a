"""What the operator asked for, as private elements: both ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reconstruct.projections.functional_groups import Attributes
from reconstruct.projections.scan import ReconstructionRequest


def read_request(attributes: Attributes) -> ReconstructionRequest:
    """Return the request in the attributes of a frame; what is absent was not asked for."""
    voxel, matrix, centre, cutoff = (
        attributes.get(keyword)
        for keyword in ("RequestedVoxelSize", "RequestedMatrix", "RequestedCentre", "RequestedCutoff")
    )
    window = str(attributes.get("RequestedFilter") or "")
    return ReconstructionRequest(
        voxel_mm_xyz=None if voxel is None else _triple(voxel),
        matrix_xyz=None if matrix is None else (int(matrix[0]), int(matrix[1]), int(matrix[2])),
        centre_mm_xyz=None if centre is None else _triple(centre),
        filter=window.lower().replace("_", "-") or None,
        cutoff=None if cutoff is None else float(cutoff),
    )


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


def _triple(value: Sequence[float]) -> tuple[float, float, float]:
    return float(value[0]), float(value[1]), float(value[2])
