"""What the operator asked for: as private elements, both ways, as parameters of a job, both ways, and as options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from reconstruct.filters import FILTERS
from reconstruct.projections.functional_groups import Attributes
from reconstruct.projections.quantities import name_of, quantities, quantity
from reconstruct.projections.scan import ReconstructionRequest, ScanError

_SMALLEST_VOXEL_MM = 1e-6
"""Voxels are to be larger than this, a nanometre: anything smaller is a wrong unit."""


_Names = tuple[str, str, str, str, str]
"""How size of a voxel, matrix, centre, filter and cut-off are called."""

_ELEMENTS: _Names = (
    "RequestedVoxelSize", "RequestedMatrix", "RequestedCentre", "RequestedFilter", "RequestedCutoff"
)  # fmt: skip
_PARAMETERS: _Names = (
    "requested_voxel_mm_xyz", "requested_matrix_xyz", "requested_centre_mm_xyz", "requested_filter", "requested_cutoff"
)  # fmt: skip
_OPTIONS: _Names = ("--voxel-mm", "--matrix", "--centre", "--filter", "--cutoff")


def read_request(attributes: Attributes) -> ReconstructionRequest:
    """Return the request in the attributes of a frame; what is absent was not asked for.

    Raises
    ------
    ScanError
        A wrong number of values, an unknown filter, a size or a cut-off that cannot be.
    """
    return _read(attributes, _ELEMENTS)


def request_of_options(
    voxel_mm: Sequence[float] | None,
    matrix: Sequence[int] | None,
    centre_mm: Sequence[float] | None,
    filter: str | None,
    cutoff: float | None,
) -> ReconstructionRequest:
    """Return the request of the options of a command, (x, y, z) each; raises `ScanError`, which names the option."""
    return _read(dict(zip(_OPTIONS, (voxel_mm, matrix, centre_mm, filter, cutoff), strict=True)), _OPTIONS)


def request_of_parameters(told: Mapping[str, Any]) -> ReconstructionRequest:
    """Return the request among the parameters of a job, see `request_parameters`; raises `ScanError`."""
    return _read(told, _PARAMETERS)


def request_parameters(request: ReconstructionRequest) -> dict[str, Any]:
    """Return what was asked for, and nothing else, by names for jobs and recipes, as JSON knows it."""
    told = zip(_PARAMETERS, astuple(request), strict=True)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in told if value is not None}


def _read(attributes: Attributes, names: _Names) -> ReconstructionRequest:
    voxel = quantities(attributes, names[0], 3, above=_SMALLEST_VOXEL_MM)
    matrix = quantities(attributes, names[1], 3, above=0)
    centre = quantities(attributes, names[2], 3)
    cutoff = quantity(attributes, names[4], above=0)
    if cutoff is not None and cutoff > 1:
        raise ScanError(f"{name_of(names[4])} is {cutoff:g}, expected at most 1")
    return ReconstructionRequest(
        voxel_mm_xyz=None if voxel is None else (voxel[0], voxel[1], voxel[2]),
        matrix_xyz=None if matrix is None else (int(matrix[0]), int(matrix[1]), int(matrix[2])),
        centre_mm_xyz=None if centre is None else (centre[0], centre[1], centre[2]),
        filter=_filter(str(attributes.get(names[3]) or ""), names[3]),
        cutoff=cutoff,
    )


def _filter(asked: str, called: str) -> str | None:
    name = asked.lower().replace("_", "-")
    if name and name not in FILTERS:
        raise ScanError(f"{name_of(called)} is {asked!r}, expected one of {', '.join(FILTERS)}")
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
