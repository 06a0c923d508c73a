"""Every kind of image that the shared data has is embedded: projections, ultrasound, colour, palettes, multi-frame."""

from pathlib import Path

import numpy as np
import pytest

from index.archive import Archive
from index.encoders.texture import TextureEncoder
from plugins.node import CannotProceed, Series
from plugins.slices import choose_slices

DATA = "pydicom-data/data_store/data"
FILES = "pydicom/src/pydicom/data/test_files"

KINDS = {
    "CR, inverted": (f"{FILES}/dicomdirtests/77654033/CR1/6154", 1),
    "DX, inverted": ("highdicom/data/test_files/dx_image.dcm", 1),
    "CT": (f"{FILES}/693_J2KI.dcm", 1),
    "CT, enhanced": (f"{DATA}/eCT_Supplemental.dcm", 2),
    "CT, legacy converted": ("dcmqi/data/segmentations/23x38x3/multiframe/mf.dcm", 1),
    "MR": (f"{FILES}/MR_small.dcm", 1),
    "MR, enhanced": (f"{DATA}/emri_small.dcm", 10),
    "NM whole body as SC": (f"{FILES}/JPEG2000.dcm", 1),
    "PET": ("suyashkumar-dicom/testdata/1.dcm", 1),
    "SC, RGB, multi-frame": (f"{FILES}/SC_rgb_rle_16bit_2frame.dcm", 2),
    "SC, YBR_FULL": (f"{FILES}/SC_rgb_dcmtk_+eb+cy+n1.dcm", 1),
    "SC, YBR_FULL_422": (f"{FILES}/SC_rgb_dcmtk_+eb+cy+np.dcm", 1),
    "SC, palette": ("cornerstone3D/packages/dicomImageLoader/testImages/TestPattern_Palette.dcm", 1),
    "US": (f"{DATA}/JPGLosslessP14SV1_1s_1f_8b.dcm", 1),
    "US, RGB, big endian": (f"{FILES}/ExplVR_BigEnd.dcm", 1),
    "US, palette, multi-frame": (f"{DATA}/OBXXXX1A_2frame.dcm", 2),
    "US cine, palette": (f"{DATA}/OBXXXX1A_rle_2frame.dcm", 2),
    "US cine, YBR_FULL_422": (f"{FILES}/examples_ybr_color.dcm", 24),
    "US, YBR_RCT": (f"{FILES}/examples_jpeg2k.dcm", 1),
    "US, YBR_ICT": (f"{DATA}/US1_J2KI.dcm", 1),
    "SM, RGB tiles": ("highdicom/data/test_files/sm_image.dcm", None),
    "parametric map in doubles": (f"{DATA}/parametric_map_double_float.dcm", 1),
    "RT image": ("pynetdicom/pynetdicom/tests/dicom_files/RTImageStorage.dcm", 1),
}
"""A file of each, and how many of its frames are embedded: empty ones are not. None: however many."""


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_embedded(kind: str, shared_data: Path, tmp_path: Path) -> None:
    file, expected = KINDS[kind]
    archive = Archive(tmp_path)
    stored = archive.ingest(shared_data / file)
    slices = choose_slices(archive, Series(archive, stored.series_instance_uid), 24, lambda _fraction: None)
    assert len(slices.frames) == (len(slices.images) if expected is None else expected)
    assert {uid for uid, _ in slices.frames} == {stored.sop_instance_uid}
    vectors = TextureEncoder.load().encode(slices.images[:2])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert np.ptp(slices.images) > 0.15, "there is nothing to be seen"


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (f"{DATA}/emri_small_jpeg_2k_lossless_too_short.dcm", "no pixel data"),
        ("cornerstone3D/packages/dicomImageLoader/testImages/no-pixel-data.dcm", "no pixel data"),
    ],
)
def test_what_has_no_readable_image_says_why(file: str, why: str, shared_data: Path, tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    stored = archive.ingest(shared_data / file)
    with pytest.raises(CannotProceed, match=why):
        choose_slices(archive, Series(archive, stored.series_instance_uid), 24, lambda _fraction: None)
