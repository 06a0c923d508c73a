"""De-identification beside `dicom-anonymizer` and `dicognito`: ``python benchmarks/deidentification.py FOLDER``.

Every tool gets the same files: of each folder the first two of at most 3 MB, of those of pydicom all. The other two are
called as libraries, in a Python where `pip install dicom-anonymizer dicognito` has put them (``--python``), with what
they do when nothing is asked for; who is not there is left out. What is counted, over the files that a tool wrote:

survive   identifying values of the original that are still in the new file's bytes outside of its pixels, by kind
          (PS3.15 Table E.1-1, and all private elements); values under 6 characters, or numbers under 8, and those that
          another attribute has as well are not counted
linked    references between the files that still point at the right one
intervals pairs of different dates of a file that are as many days apart as before
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import combinations, groupby
from pathlib import Path

from pydicom import dcmread
from pydicom._uid_dict import UID_dictionary
from pydicom.dataset import Dataset

from config.deidentification import Option
from index.deidentification.deidentifier import Deidentifier
from index.deidentification.profile import Profile
from index.deidentification.secret import Secret
from index.deidentification.table import attribute
from index.errors import CannotDeidentify
from index.files import is_part10

KINDS = ("names and numbers", "dates", "UIDs", "private", "times of day")
BINARY = ("OB", "OW", "OF", "OD", "OL", "OV", "UN", "US", "UL", "SS", "SL", "FD", "FL", "AT", "UV", "SV")
DATES = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")


def sample(folder: Path, into: Path) -> list[Path]:
    """Copy the files into a flat folder and return them there."""
    into.mkdir()
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size <= 3_000_000)
    copied = []
    for where, paths in groupby((path for path in found if is_part10(path)), key=lambda path: path.parent):
        for path in list(paths)[: 400 if "pydicom" in where.parts else 2]:
            copied.append(into / f"{len(copied):04d}.dcm")
            shutil.copyfile(path, copied[-1])
    return copied


def values(dataset: Dataset, *, identifying: bool) -> Iterator[tuple[str, bytes]]:
    """Yield kind and encoded value of elements that identify, or of those that do not."""
    for tag, raw in list(dataset.items()):
        try:
            element = dataset[tag]
        except Exception:  # noqa: BLE001
            continue
        if element.VR == "SQ":
            for item in element.value or []:
                yield from values(item, identifying=identifying)
            continue
        names = tag.is_private or element.VR == "PN" or attribute(int(tag)) is not None
        content = getattr(raw, "value", None)
        if names == identifying and isinstance(content, bytes) and element.VR not in BINARY:
            by_vr = {"DA": KINDS[1], "DT": KINDS[1], "TM": KINDS[4], "UI": KINDS[2]}
            kind = KINDS[3] if tag.is_private else by_vr.get(element.VR, KINDS[0])
            yield from ((kind, part) for part in content.split(b"\\"))


def searched(path: Path) -> dict[bytes, str]:
    kept = b"\\".join(value for _, value in values(header(path), identifying=False)).lower()
    found = {}
    for kind, value in values(header(path), identifying=True):
        plain = value.strip(b" \0").lower()
        for part in (plain, *re.split(rb"[\^=]", plain)):
            is_number = re.fullmatch(rb"[-+0-9.eE ]+", part) is not None
            is_known = part.decode("ascii", "replace") in UID_dictionary or not part.strip(b"0 .")
            is_known |= part == b"removed"
            if not is_known and len(part) >= (8 if is_number else 6) and part not in kept:
                found[part] = kind
    return found


def header(path: Path) -> Dataset:
    return dcmread(path, stop_before_pixels=True, force=True)


def content_of(path: Path) -> bytes:
    """Return the bytes of a file without its pixels."""
    whole, dataset = path.read_bytes(), dcmread(path, defer_size=1024, force=True)
    element = dict(dataset.items()).get(0x7FE00010)
    begin = getattr(element, "value_tell", len(whole)) or len(whole)
    return whole[:begin].lower()


def judge(pairs: list[tuple[Path, Path]]) -> tuple[Counter[str], int, int, int, int]:
    """Return surviving values by kind; references kept, of how many; intervals kept, of how many."""
    left: Counter[str] = Counter()
    renamed = {str(header(old).get("SOPInstanceUID")): str(header(new).get("SOPInstanceUID")) for old, new in pairs}
    linked = links = kept = intervals = 0
    for old, new in pairs:
        content = content_of(new)
        left.update(kind for value, kind in searched(old).items() if value in content)
        wanted = [renamed[uid] for uid in references(old) if uid in renamed]
        there = references(new)
        links, linked = links + len(wanted), linked + sum(1 for uid in wanted if uid in there)
        before, after = header(old), header(new)
        for one, other in combinations([key for key in DATES if day(before, key)], 2):
            apart = day(before, one) - day(before, other)
            if not apart:
                continue
            intervals += 1
            moved = (day(after, one), day(after, other))
            kept += None not in moved and moved[0] - moved[1] == apart
    return left, linked, links, kept, intervals


def references(path: Path) -> set[str]:
    return {str(element.value) for element in header(path).iterall() if element.keyword == "ReferencedSOPInstanceUID"}


def day(dataset: Dataset, keyword: str) -> datetime | None:
    try:
        return datetime.strptime(str(dataset.get(keyword)), "%Y%m%d")
    except ValueError:
        return None


def tharsis(profile: Profile) -> Callable[[list[Path], Path], None]:
    def run(files: list[Path], out: Path) -> None:
        deidentifier = Deidentifier(profile, Secret(bytes(range(32))))
        for path in files:
            try:
                deidentifier.deidentify_file(path, out / path.name)
            except CannotDeidentify:
                continue

    return run


def peer(python: str, program: str) -> Callable[[list[Path], Path], None]:
    """Run a loop over the files in another Python; a file that it cannot do is left out."""

    def run(files: list[Path], out: Path) -> None:
        told = "\n".join(f"{path}\t{out / path.name}" for path in files)
        command = [python, "-W", "ignore", "-c", LOOP + program]
        subprocess.run(command, input=told, text=True, capture_output=True, check=False)

    return run


LOOP = """
import sys
def all_of(convert):
    for line in sys.stdin.read().splitlines():
        source, target = line.split("\\t")
        try:
            convert(source, target)
        except Exception:
            pass
"""

PEERS = {
    "dicom-anonymizer": "import dicomanonymizer\nall_of(dicomanonymizer.anonymize_dicom_file)",
    "dicognito": """
import pydicom
from dicognito.anonymizer import Anonymizer
anonymizer = Anonymizer()
def convert(source, target):
    with pydicom.dcmread(source) as dataset:
        anonymizer.anonymize(dataset)
        dataset.save_as(target, enforce_file_format=True)
all_of(convert)
""",
}


def is_installed(python: str, package: str) -> bool:
    return subprocess.run([python, "-c", f"import {package}"], capture_output=True, check=False).returncode == 0


def main() -> None:
    warnings.simplefilter("ignore")
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--python", default=sys.executable, help="a Python that has the other two")
    told = arguments.parse_args()
    folder = told.folder
    most = frozenset(Option) - {Option.RETAIN_UIDS, Option.RETAIN_DEVICE_IDENTITY, Option.RETAIN_INSTITUTION_IDENTITY}
    tools: dict[str, Callable[[list[Path], Path], None]] = {
        "tharsis, Basic Profile": tharsis(Profile("basic", burned_in="trust_unmarked")),
        "tharsis, modified dates": tharsis(Profile("research", most, "modified", "trust_unmarked")),
    }
    for name, program in PEERS.items():
        if is_installed(told.python, name.replace("-", "")):
            tools[name] = peer(told.python, program)
    with tempfile.TemporaryDirectory() as work:
        files = sample(folder, Path(work) / "in")
        print(f"{len(files)} files")
        print(f"| tool | files not written | {' | '.join(f'{kind} left' for kind in KINDS)} | linked | intervals | s |")
        for name, tool in tools.items():
            out = Path(work) / name.replace(" ", "_")
            out.mkdir()
            began = time.perf_counter()
            tool(files, out)
            seconds = time.perf_counter() - began
            pairs = [(path, out / path.name) for path in files if (out / path.name).exists()]
            left, linked, links, kept, intervals = judge(pairs)
            counts = " | ".join(str(left[kind]) for kind in KINDS)
            failed = len(files) - len(pairs)
            print(f"| {name} | {failed} | {counts} | {linked}/{links} | {kept}/{intervals} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
