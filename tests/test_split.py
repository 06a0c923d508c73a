"""The held-out part: by patient, reproducible, of the size that was asked for."""

import pytest

from index.split import is_held_out, patient_key

PATIENTS = [f"patient {number}" for number in range(2000)]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_about_the_fraction_is_held_out(fraction):
    held = sum(is_held_out(patient, seed=7, fraction=fraction) for patient in PATIENTS)
    assert held == pytest.approx(fraction * len(PATIENTS), abs=80)


def test_a_patient_keeps_the_side_and_a_larger_part_holds_the_smaller():
    small, large = ({p for p in PATIENTS if is_held_out(p, seed=1, fraction=f)} for f in (0.2, 0.4))
    assert small < large
    assert small == {p for p in reversed(PATIENTS) if is_held_out(p, seed=1, fraction=0.2)}
    assert small != {p for p in PATIENTS if is_held_out(p, seed=2, fraction=0.2)}


def test_the_split_is_the_same_on_every_machine():
    held = [number for number in range(20) if is_held_out(f"P{number}", seed=0, fraction=0.3)]
    assert held == [0, 2, 4, 8, 10, 16]


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_lies_between_0_and_1(fraction):
    with pytest.raises(ValueError, match="0 to 1"):
        is_held_out("P1", seed=0, fraction=fraction)


def test_without_a_patient_id_the_study_stands_for_the_patient():
    assert patient_key("P1", "1.2.3") == "P1"
    assert patient_key("", "1.2.3") == "1.2.3"
