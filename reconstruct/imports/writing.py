"""A raw scan as P1 instances, a bounded number of views in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydicom.dataset import Dataset

from reconstruct.imports.raw_scan import RawScan
from reconstruct.projections.acquisition import Acquisition, CounterImages
from reconstruct.projections.p1_writer import p1_instances
from reconstruct.projections.scan import CounterKind

_MOST_PIXELS_BYTES = 64 << 20
"""Of one instance, and so of what is held in memory."""


def instances_of(scan: RawScan, header: Dataset, progress: Callable[[float], None] | None = None) -> Iterator[Dataset]:
    """Yield the instances of a scan, each to be stored before the next is asked for.

    Parameters
    ----------
    scan
        What was read.
    header
        Patient, study, series and equipment attributes.
    progress
        Called with the fraction of the images that are written; may raise to stop the work.

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
    total = sum(len(images) for images in (scan.views, scan.flats, scan.darks) if images is not None)
    done = 0
    for instance in p1_instances(
        [counter], scan.geometry(), header, acquisition, largest_pixel_data=_MOST_PIXELS_BYTES
    ):
        done += int(instance.NumberOfFrames)
        yield instance
        if progress is not None:
            progress(done / total)
