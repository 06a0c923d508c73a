"""How the materials and what is said of them are coded (PS3.16 CID 300 and 301)."""

from __future__ import annotations

from collections.abc import Mapping

from pydicom.sr.coding import Code

MATERIALS: Mapping[str, Code] = {
    "water": Code("11713004", "SCT", "Water"),
    "lipid": Code("256674009", "SCT", "Fat"),
    "hydroxyapatite": Code("256579008", "SCT", "Calcium Hydroxyapatite"),
    "bone": Code("3138006", "SCT", "Bone"),
    "iodine": Code("44588005", "SCT", "Iodine"),
    "gadolinium": Code("58281002", "SCT", "Gadolinium"),
    "gold": Code("2309006", "SCT", "Gold"),
}
"""CID 300 "Multi-energy Relevant Material"; bone, which it lacks, as SNOMED CT has it."""

MG_PER_ML = Code("mg/ml", "UCUM", "mg/ml")
"""As CID 301 writes it; UCUM takes l and L for the litre."""
NO_UNITS = Code("1", "UCUM", "no units")
CONCENTRATION = Code("122093", "DCM", "Concentration")
CHI_SQUARE = Code("126221", "DCM", "Chi-square")
