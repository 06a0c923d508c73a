"""TotalSegmentator's structures in SNOMED CT: all of them, each as itself, and as DICOM's context groups say it."""

import gzip
import re
import struct

import pytest
from pydicom.sr import _concepts_dict
from pydicom.sr.codedict import codes

from plugins.segmentation.reading import name_of
from plugins.segmentation.totalsegmentator_codes import UnknownStructure, segment_for, segments

REFERENCES = "TotalSegmentator/tests/reference_files"


def embedded_names(path):
    """Label → structure, as the header extension of a label file tells it."""
    content = gzip.decompress(path.read_bytes())
    (offset,) = struct.unpack("<f", content[108:112])
    found = re.findall(rb'Key="(\d+)".*?CDATA\[([^\]]*)\]', content[348 : int(offset)], re.DOTALL)
    return {int(number): name.decode() for number, name in found}


def dicom_meanings():
    """SNOMED CT code → its meanings in DICOM's context groups, in CID 7150 and 7151 alone where these have it."""
    known = {}
    for entry in _concepts_dict.concepts["SCT"].values():
        for value, (meaning, groups) in entry.items():
            if groups:
                known.setdefault(value, []).append((meaning, bool({7150, 7151} & set(groups))))
    return {
        value: {meaning for meaning, of_segments in found if of_segments or not any(one for _, one in found)}
        for value, found in known.items()
    }


@pytest.mark.parametrize(("file", "count"), [("example_seg.nii.gz", 117), ("example_seg_mr.nii.gz", 50)])
def test_each_structure_of_a_task_has_a_segment_of_its_own(shared_data, file, count):
    names = embedded_names(shared_data / REFERENCES / file)
    assert len(names) == count
    made = [segment_for(name) for name in names.values()]
    assert [one.label for one in made] == list(names.values())
    assert len({(one.type, one.modifiers) for one in made}) == count


def test_sides_follow_the_names_and_are_the_codes_of_left_and_right():
    for name, segment in segments().items():
        side = re.search("left|right", name)
        told = {modifier.value for modifier in segment.modifiers}
        if side is None:
            assert not told
        else:
            wanted = codes.SCT.Left if side[0] == "left" else codes.SCT.Right
            assert told == {wanted.value} or side[0] in segment.type.meaning.lower()


def test_codes_mean_what_dicom_s_context_groups_say():
    known = dicom_meanings()
    told = [one.type for one in segments().values()]
    of_dicom = [code for code in told if code.value in known]
    assert len(of_dicom) > len(told) / 2
    assert [code for code in of_dicom if code.meaning not in known[code.value]] == []
    categories = {(one.category.value, one.category.meaning) for one in segments().values()}
    assert categories == {
        ("91723000", "Anatomical Structure"),
        ("49755003", "Morphologically Abnormal Structure"),
    }
    assert all(meaning in known[value] for value, meaning in categories)


@pytest.mark.parametrize(
    ("structure", "name", "value"),
    [
        ("kidney_left", "Kidney, Left", "64033007"),
        ("subclavian_artery_left", "Subclavian artery, Left", "36765005"),
        ("rib_right_7", "Seventh rib, Right", "24915002"),
        ("vertebrae_L3", "L3 vertebra", "36470004"),
        ("lung_middle_lobe_right", "Middle lobe of right lung", "72481006"),
        ("atrial_appendage_left", "Left auricular appendage", "33626005"),
        ("kidney_cyst_right", "Cyst, Right", "367643001"),
        ("intervertebral_discs", "Intervertebral disc", "360499006"),
    ],
)
def test_structures_are_called_what_they_are(structure, name, value):
    segment = segment_for(structure)
    assert (name_of(segment), segment.type.value, segment.type.scheme_designator) == (name, value, "SCT")


def test_a_structure_that_nobody_knows_is_told():
    with pytest.raises(UnknownStructure, match="'vertebrae_L9' has no code"):
        segment_for("vertebrae_L9")
