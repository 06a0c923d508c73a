"""The plug-in that decomposes: which series it makes of a reconstruction, what they say, and how right they are."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import highdicom
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ParametricMapStorage
from scipy import ndimage

from config.settings import MaterialName, Settings, load_settings
from index.archive import Archive
from index.keys import Level
from plugins.embedding import is_picture
from plugins.materials import decomposing, material_codes, plugin
from plugins.materials.bins import Bin, Bins, read_bins
from plugins.materials.material_ct import refuse_without_energies
from plugins.node import CannotProceed, Series
from plugins.worker import Worker
from reconstruct.basis import MATERIALS
from reconstruct.geometry import VolumeGrid
from reconstruct.simulate import simulate_scan
from reconstruct.spectral_phantoms import spectral_phantom
from reconstruct.working_memory import file_array

PHANTOM = "contrast-agents"


def settings_of(archive: Archive, **materials: Any) -> Settings:
    overrides = {
        "archive": {"data": archive.data}, "jobs": {"max_attempts": 1}, "similarity": {"enabled": False},
        "segmentation": {"enabled": False}, "scan_quality": {"enabled": False},
        "materials": {"enabled": True, **materials},
    }  # fmt: skip
    return load_settings(environment={}, overrides=overrides)


def store(archive: Archive, objects: list[Dataset]) -> None:
    for dataset in objects:
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        archive.ingest(buffer.getvalue())


def work(archive: Archive, settings: Settings) -> list[str]:
    """Do what is queued; return the sentences of all jobs that failed."""
    Worker(archive, settings, "w").run_until_idle()
    return [job.error for job in archive.jobs.recent(states=("failed",))]


def made(archive: Archive, kind: str = "decompose") -> list[Series]:
    rows = archive.database.execute(
        "SELECT series_instance_uid FROM derivation_output JOIN derivation ON derivation.id = "
        "derivation_output.derivation WHERE recipe LIKE ? ORDER BY derivation_output.rowid",
        (f'%"kind":"{kind}"%',),
    )
    found = [Series(archive, uid) for (uid,) in rows.fetchall()]
    return sorted(found, key=lambda series: int(series.header.SeriesNumber))


def contents(archive: Archive) -> dict[str, str]:
    return dict(archive.database.execute("SELECT sop_instance_uid, sha256 FROM instance").fetchall())


@pytest.fixture(scope="module")
def scanned() -> list[Dataset]:
    return simulate_scan(PHANTOM, views=40, rows=16, columns=40, seed=1)


@pytest.fixture(scope="module")
def decomposed(scanned: list[Dataset], tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """A small scan with everything that is made of its energy bins."""
    archive = Archive(tmp_path_factory.mktemp("decomposed"), settle_time_s=0.0)
    store(archive, scanned)
    assert work(archive, settings_of(archive, objects=["map", "ct"], residual=True)) == []
    return archive


def maps(archive: Archive) -> dict[str, NDArray[np.float32]]:
    """Concentrations by the code of the material, (z, y, x), as highdicom reads them."""
    found = {}
    for series in made(archive):
        if series.header.SOPClassUID == ParametricMapStorage:
            image = highdicom.imread(series.paths[0])
            volume = image.get_volume().to_patient_orientation("HPL")
            names = [item.ConceptCodeSequence[0].CodeMeaning for item in mapping_of(image).QuantityDefinitionSequence]
            found[names[-1]] = np.asarray(volume.array, np.float32)
    return found


def mapping_of(dataset: Dataset) -> Dataset:
    return dataset.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]


def test_each_material_is_a_series_beside_the_bins(decomposed: Archive) -> None:
    told = [(s.header.SOPClassUID.name, s.header.SeriesDescription, s.header.SeriesNumber) for s in made(decomposed)]
    ct, pm = CTImageStorage.name, ParametricMapStorage.name
    assert told == [
        (pm, "Water mg/ml", 5101), (pm, "Hydroxyapatite mg/ml", 5102), (pm, "Iodine mg/ml", 5103),
        (pm, "Unexplained by the materials (chi-square)", 5104),
        (ct, "Water mg/ml", 6101), (ct, "Hydroxyapatite mg/ml", 6102), (ct, "Iodine mg/ml", 6103),
    ]  # fmt: skip
    bins = made(decomposed, "reconstruct")
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName"):
        assert len({str(s.header[keyword].value) for s in (*bins, *made(decomposed))}) == 1, keyword


def test_dciodvfy_finds_no_error(decomposed: Archive, validator_errors: Callable[[Path], list[str]]) -> None:
    for series in made(decomposed):
        assert validator_errors(series.paths[0]) == [], series.header.SeriesDescription


def test_a_map_says_what_it_shows_and_what_it_was_made_from(decomposed: Archive) -> None:
    dataset = pydicom.dcmread(made(decomposed)[2].paths[0])
    mapping = mapping_of(dataset)
    unit = mapping.MeasurementUnitsCodeSequence[0]
    assert (unit.CodeValue, unit.CodingSchemeDesignator) == ("mg/ml", "UCUM")
    quantity, of = (item.ConceptCodeSequence[0] for item in mapping.QuantityDefinitionSequence)
    assert (quantity.CodeValue, of.CodeValue, of.CodingSchemeDesignator) == ("122093", "44588005", "SCT")
    bins = [list(map(pydicom.dcmread, s.paths)) for s in made(decomposed, "reconstruct")]
    assert len(bins) == 4
    assert dataset.NumberOfFrames == len(bins[0])
    at_height = {float(ds.ImagePositionPatient[2]): set() for ds in bins[0]}
    for ds in (ds for each in bins for ds in each):
        at_height[float(ds.ImagePositionPatient[2])].add(ds.SOPInstanceUID)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        z = float(frame.PlanePositionSequence[0].ImagePositionPatient[2])
        (derivation,) = frame.DerivationImageSequence
        assert {item.ReferencedSOPInstanceUID for item in derivation.SourceImageSequence} == at_height[z]
        for told in ("materials=water+hydroxyapatite+iodine", "filtration_mm_al=2", "penalty=4"):
            assert told in derivation.DerivationDescription
    scanner = dataset.ContributingEquipmentSequence[0]
    assert scanner.Manufacturer == "Tharsis simulator"


def test_ct_images_hold_the_same_concentrations(decomposed: Archive) -> None:
    concentrations = maps(decomposed)
    for series in made(decomposed)[4:]:
        slices = sorted(map(pydicom.dcmread, series.paths), key=lambda ds: float(ds.ImagePositionPatient[2]))
        first = slices[0]
        assert list(first.ImageType) == ["DERIVED", "PRIMARY", "AXIAL", "MAT_SPECIFIC"]
        assert (first.MultienergyCTAcquisition, first.RescaleType) == ("YES", "MGML")
        acquisition = first.MultienergyCTAcquisitionSequence[0]
        edges = [
            (item.NominalMinEnergy, item.NominalMaxEnergy) for item in acquisition.MultienergyCTXRayDetectorSequence
        ]
        assert edges == [(18, 30), (30, 45), (45, 60), (60, 118)]
        assert acquisition.MultienergyAcquisitionDescription == "One spectrum, photons counted in 4 energy bins"
        basis = first.MultienergyCTProcessingSequence[0].DecompositionMaterialSequence
        assert [item.MaterialCodeSequence[0].CodeMeaning for item in basis] == [
            "Water", "Calcium Hydroxyapatite", "Iodine",
        ]  # fmt: skip
        mapping = first.RealWorldValueMappingSequence[0]
        name = mapping.QuantityDefinitionSequence[1].ConceptCodeSequence[0].CodeMeaning
        step = float(first.RescaleSlope)
        values = np.stack([ds.pixel_array * step for ds in slices])
        expected = concentrations[name]
        np.testing.assert_allclose(values, expected, atol=step * 0.51)


def test_there_are_no_images_of_materials_without_energies_in_those_of_the_bins(decomposed: Archive) -> None:
    bins = read_bins(made(decomposed, "reconstruct"))
    assert bins.kvp == 118
    refuse_without_energies(bins)
    del bins.first.MultienergyCTAcquisitionSequence
    with pytest.raises(CannotProceed, match="have no multi-energy attributes"):
        refuse_without_energies(bins)


def test_maps_of_composition_are_not_embedded(decomposed: Archive) -> None:
    assert not any(is_picture(series) for series in made(decomposed))
    assert all(is_picture(series) for series in made(decomposed, "reconstruct"))


def test_doing_it_again_gives_the_same_objects(archive: Archive, scanned: list[Dataset]) -> None:
    settings = settings_of(archive, objects=["map", "ct"])
    store(archive, scanned)
    assert work(archive, settings) == []
    before = contents(archive)
    first, gone = made(archive, "reconstruct")[0], made(archive)[1]
    archive.delete(Level.SERIES, gone.uid)
    archive.jobs.push(plugin.KIND, first.uid)
    assert work(archive, settings) == []
    assert contents(archive) == before
    archive.jobs.push(plugin.KIND, first.uid)
    changes = archive.database.execute("SELECT count(*) FROM change").fetchone()
    assert work(archive, settings) == []
    assert archive.database.execute("SELECT count(*) FROM change").fetchone() == changes


def test_nothing_is_decomposed_unless_asked_for_or_of_one_bin(archive: Archive, decomposed: Archive) -> None:
    first, second, *_ = made(decomposed, "reconstruct")
    assert [job.kind for job in plugin.jobs_for_series(first, settings_of(decomposed))] == ["decompose"]
    assert plugin.jobs_for_series(second, settings_of(decomposed)) == []
    assert plugin.jobs_for_series(first, settings_of(decomposed, enabled=False)) == []
    assert plugin.jobs_for_series(made(decomposed)[0], settings_of(decomposed)) == []
    store(archive, simulate_scan(PHANTOM, views=12, rows=8, columns=16, thresholds_kev=(18,)))
    assert work(archive, settings_of(archive)) == []
    assert len(made(archive, "reconstruct")) == 1
    assert made(archive) == []


def test_what_was_reconstructed_before_is_decomposed_when_a_command_says_so(
    archive: Archive, scanned: list[Dataset], tharsis: Callable[..., Any], tmp_path: Path
) -> None:
    store(archive, scanned)
    assert work(archive, settings_of(archive, enabled=False)) == []
    config = tmp_path / "node.toml"
    for enabled, queued in (("false", "0 jobs queued"), ("true", "1 job queued")):
        config.write_text(f'[archive]\ndata = "{archive.data}"\n[materials]\nenabled = {enabled}\n')
        told = tharsis("jobs", "queue", "decompose", "--config", config)
        assert (told.returncode, told.stdout.splitlines()[-1].split(":")[0]) == (0, queued), told.stderr
    assert work(archive, settings_of(archive)) == []
    assert len(made(archive)) == 3
    unknown = tharsis("jobs", "queue", "decomposition", "--config", config)
    assert (unknown.returncode, "decompose" in unknown.stderr) == (2, True)


def test_the_same_comes_out_when_memory_is_short(
    archive: Archive, scanned: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(archive)
    store(archive, scanned)
    assert work(archive, settings) == []
    before, in_files = contents(archive), []
    archive.delete(Level.SERIES, made(archive)[0].uid)
    archive.jobs.push(plugin.KIND, made(archive, "reconstruct")[0].uid)
    monkeypatch.setattr(
        decomposing, "file_array", lambda shape, folder: in_files.append(shape) or file_array(shape, folder)
    )
    little = settings.reconstruct.model_copy(update={"memory_mb": 0, "threads": 1})
    assert work(archive, settings.model_copy(update={"reconstruct": little})) == []
    assert contents(archive) == before
    assert [len(shape) for shape in in_files] == [4, 4, 4, 4, 3], "bins, twice smoothed, fractions, residual"


@pytest.mark.parametrize(
    ("materials", "sentence"),
    [
        ({"sets": ["water+gold"]}, "sets in [materials] name 'gold', which is not among use: water, hydroxyapatite"),
        ({"calibration": {"gold": [1, 1, 1, 1]}}, "gold is calibrated but not used"),
        ({"calibration": {"iodine": [1, 1]}}, "expected 4 values above 0 for iodine"),
        ({"water_path_mm": 900.0}, "the materials have to be calibrated"),
    ],
)
def test_settings_that_do_not_fit_fail_in_one_sentence(
    archive: Archive, scanned: list[Dataset], materials: dict[str, Any], sentence: str
) -> None:
    store(archive, scanned)
    (told,) = work(archive, settings_of(archive, **materials))
    assert sentence in told
    assert made(archive) == []


def test_every_material_of_the_settings_is_known_and_coded() -> None:
    assert set(get_args(MaterialName)) == MATERIALS.keys() == material_codes.MATERIALS.keys()


TRUTH = {
    "water": ("Water", 1000), "iodine 9 mg/ml": ("Iodine", 9), "iodine 18 mg/ml": ("Iodine", 18),
    "hydroxyapatite 200 mg/ml": ("Calcium Hydroxyapatite", 200),
    "hydroxyapatite 400 mg/ml": ("Calcium Hydroxyapatite", 400),
    "hydroxyapatite 800 mg/ml": ("Calcium Hydroxyapatite", 800),
    "gadolinium 8 mg/ml": ("Gadolinium", 8), "gold 8 mg/ml": ("Gold", 8),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("thresholds_kev", "use"),
    [
        ((18.0, 30.0, 45.0, 60.0), ("water", "hydroxyapatite", "iodine")),
        ((25.0, 33.2, 50.3, 80.8), ("water", "hydroxyapatite", "iodine", "gadolinium", "gold")),
    ],
    ids=["default thresholds", "thresholds at K edges"],
)
def test_concentrations_of_inserts_are_within_ten_percent(
    archive: Archive, thresholds_kev: tuple[float, ...], use: tuple[str, ...]
) -> None:
    """Rods of 5.4 mm, the simulator's default dose and size, noise of a seed that nothing was tuned with."""
    store(archive, simulate_scan(PHANTOM, thresholds_kev=thresholds_kev, seed=2026))
    assert work(archive, settings_of(archive, use=list(use))) == []
    found, phantom = maps(archive), spectral_phantom(PHANTOM)
    bins = made(archive, "reconstruct")[0]
    slices = sorted(map(pydicom.dcmread, bins.paths), key=lambda ds: float(ds.ImagePositionPatient[2]))
    shape, voxel = (len(slices), slices[0].Rows, slices[0].Columns), float(slices[0].PixelSpacing[0])
    labels = phantom.labels(VolumeGrid(shape, (voxel,) * 3, (0.0, 0.0, 0.0)))
    z = (np.arange(shape[0]) - (shape[0] - 1) / 2) * voxel
    tried = 0
    for number, material in enumerate(phantom.materials, start=1):
        name, expected = TRUTH[material.name]
        if name not in found:
            continue
        core = ndimage.binary_erosion(labels == number, iterations=2) & (np.abs(z) < 2)[:, None, None]
        values = found[name]
        assert values[core].mean() == pytest.approx(expected, rel=0.1), material.name
        tried += 1
    assert tried == len(TRUTH) - (2 if "gold" not in use else 0)


@pytest.mark.parametrize("spacing", [(0.5, 0.5), (0.25, 1.0), (1.0, 0.25)], ids=str)
def test_the_path_in_the_object_is_the_same_whatever_the_shape_of_pixels(
    archive: Archive, spacing: tuple[float, float]
) -> None:
    """A disc of water, 24 mm wide, in pixels of a quarter of a square millimetre."""
    rows, columns = spacing
    y, x = np.ogrid[-16 + rows / 2 : 16 : rows, -16 + columns / 2 : 16 : columns]
    disc = (np.hypot(y, x) < 12).astype(np.float32)
    header = Dataset()
    header.PixelSpacing, header.KVP = list(spacing), 118.0
    found = Bins(
        (Bin((header,), 25.0, 50.0, 0.36), Bin((header,), 50.0, 118.0, 0.2)),
        np.stack([0.36 * disc, 0.2 * disc])[:, None].astype(np.float32),
    )
    settings = settings_of(archive, use=["water"], filtration_mm_al=2.0).materials
    told = decomposing.materials_in(found, settings, threads=1).told
    assert told["hardening_mm"] == pytest.approx(8 / (3 * np.pi) * 24, rel=0.02)
