"""A raw scan as P1 instances, a bounded number of views in memory at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterator

from pydicom.dataset import Dataset

from reconstruct.imports.identity import ScanUids
from reconstruct.imports.raw_scan import RawScan
from reconstruct.projections import elements
from reconstruct.projections.acquisition import Acquisition, CounterImages
from reconstruct.projections.p1_writer import p1_instances
from reconstruct.projections.scan import CounterKind

_MOST_PIXELS_BYTES = 64 << 20
"""Of one instance, and so of what is held in memory."""


def instances_of(
    scan: RawScan,
    header: Dataset,
    progress: Callable[[float], None] | None = None,
    *,
    uids: ScanUids | None = None,
    leave_out: Container[str] = (),
    tell: Callable[[str], None] | None = None,
) -> Iterator[Dataset]:
    """Yield the instances of a scan, each to be stored before the next is asked for.

    Parameters
    ----------
    scan
        What was read.
    header
        Patient, study, series and equipment attributes.
    progress
        Called with the fraction of the instances that are written; may raise to stop the work.
    uids
        What the scan is called; None: as nothing before.
    leave_out
        SOP Instance UIDs of what is there already: it is neither read nor made again.
    tell
        Called with a sentence for the user where values that cannot be meant are clipped.

    Raises
    ------
    ScanError
        The scan lacks something, or an image cannot be read; the sentence names it.
    """
    scan.check()
    setup = scan.setup
    counter = CounterImages(setup.energy, scan.views, scan.flats, scan.darks, setup.unattenuated)
    acquisition = Acquisition(
        pixel_meaning=setup.pixels,
        counter_kind=CounterKind.DIFFERENTIAL,
        exposure=setup.exposure,
        view_times_s=setup.view_times_s,
        flat_times_s=setup.flat_times_s,
    )
    common = copy.deepcopy(header)
    if uids is not None:
        common.StudyInstanceUID, common.SeriesInstanceUID = uids.study, uids.series
        common.FrameOfReferenceUID = uids.frame_of_reference
    for instance in p1_instances(
        [counter], scan.geometry(), common, acquisition,
        scan_uid="" if uids is None else uids.scan_set,
        largest_pixel_data=_MOST_PIXELS_BYTES,
        instance_uid=None if uids is None else uids.instance,
        leave_out=leave_out,
        tell=tell,
    ):  # fmt: skip
        yield instance
        if progress is not None:
            progress(int(instance.InstanceNumber) / elements.read(instance)["ExpectedInstances"])
