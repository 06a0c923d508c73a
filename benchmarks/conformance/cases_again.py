"""C-STORE: what is sent again, what does not fit, and what is large."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Iterator

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from benchmarks.conformance.case import case, check, code
from benchmarks.conformance.probe import Bench, encode
from benchmarks.conformance.wire import Context, Gone, Silent

STORE = "C-STORE"

# The same SOP Instance UID again

@case(STORE, "same SOP Instance UID, same content", "0000, nothing written twice", clause="PS3.4 B.2.3",
      expected="0000, one instance, no further file")
def same_again(bench: Bench) -> str:
    image = bench.image(ImageComments="y" * 4_000)
    bench.put(image)
    before = len(bench.node.files())
    answer = bench.store(image)
    check(answer.status == 0, code(answer))
    keys = {"StudyInstanceUID": bench.study, "SeriesInstanceUID": bench.series}
    check(len(bench.rows("S", "IMAGE", SOPInstanceUID=None, **keys)) == 1, "listed twice")
    check(len(bench.node.files()) <= before, f"{len(bench.node.files()) - before} more files")
    return "0000, no further file"


def _other_content(bench: Bench, *, first: str = "PROBE", second: str = "PROBE") -> tuple[int, str]:
    """Store two versions; return the second's Status and the comment of the one that is there."""
    image = bench.image(ImageComments="first")
    bench.put(image, calling=first)
    image.ImageComments = "second"
    answer = bench.store(image, calling=second)
    got = bench.get_one(image, ExplicitVRLittleEndian)
    check(got.dataset.PatientID == bench.patient, "another object came back")
    keys = {"StudyInstanceUID": bench.study, "SeriesInstanceUID": bench.series}
    check(len(bench.rows("S", "IMAGE", SOPInstanceUID=None, **keys)) == 1, "listed twice")
    return answer.status, str(got.dataset.ImageComments)


OTHER = "same SOP Instance UID, other content"


@case(STORE, OTHER, "default: the old one is kept and a warning says so", clause="PS3.4 B.2.3 (Bxxx)",
      expected="Bxxx, the old one")
def other_content_by_default(bench: Bench) -> str:
    status, kept = _other_content(bench)
    check(status & 0xF000 == 0xB000 and kept == "first", f"{status:04X}, the {kept} is kept")
    return f"{status:04X}, the {kept} is kept"


@case(STORE, OTHER, "policy `always` replaces", clause="-", expected="0000, the new one", variant="overwrite always")
def other_content_always(bench: Bench) -> str:
    status, kept = _other_content(bench)
    check(status == 0 and kept == "second", f"{status:04X}, the {kept} is kept")
    return "0000, the new one"


@case(STORE, OTHER, "policy `same_source` replaces for the AE that sent the first, warns another", clause="-",
      expected="0000 and the new one; Bxxx and the old one", variant="overwrite same source")
def other_content_same_source(bench: Bench) -> str:
    same, kept = _other_content(bench)
    check(same == 0 and kept == "second", f"same AE: {same:04X}, the {kept} is kept")
    bench.renew()
    another, kept = _other_content(bench, second="OTHER")
    check(another & 0xF000 == 0xB000 and kept == "first", f"another AE: {another:04X}, the {kept} is kept")
    return f"0000 and the new one; {another:04X} and the old one"


@case(STORE, OTHER, "a kill while it is replaced leaves the old or the new one whole", clause="-",
      expected="one whole version after each of 2 kills", variant="overwrite always")
def replaced_or_not(bench: Bench) -> str:
    dice = random.Random(7)
    for _ in range(2):
        bench.renew()
        image = bench.image(ImageComments="0")
        bench.put(image)
        versions = {encode(image, ExplicitVRLittleEndian)}
        confirmed = next(iter(versions))
        killer = threading.Timer(dice.uniform(0.05, 0.3), bench.node.kill)
        try:
            association = bench.associate([Context(CTImageStorage, (str(ExplicitVRLittleEndian),))])
            for number in range(1, 5_000):
                if number == 5:
                    killer.start()
                image.ImageComments = str(number)
                data = encode(image, ExplicitVRLittleEndian)
                under_way = data
                answer = bench.store_message(association, data, CTImageStorage, str(image.SOPInstanceUID))
                if answer.status == 0:
                    confirmed = data
        except (Gone, Silent):
            pass
        finally:
            if killer.ident is not None:
                killer.join()
        bench.node.restart()
        got = bench.get_one(image, ExplicitVRLittleEndian).data
        check(got in (confirmed, under_way), "neither the last confirmed version nor the one under way came back whole")
    return "whole after 2 kills"


# Another patient in the same study

MISMATCH = "same Study UID, other PatientID"


@case(STORE, MISMATCH, "accept: stored, the study stays one, both come back as they were", clause="PS3.3 A.1.2",
      expected="0000 or a warning; one study of its patient; both data sets unchanged")
def two_patients_accepted(bench: Bench) -> str:
    first, second = bench.image(), bench.image(PatientID=f"Q{bench.token}")
    bench.put(first)
    answer = bench.store(second)
    check(answer.status == 0 or answer.status & 0xF000 == 0xB000, code(answer))
    studies = bench.rows("S", "STUDY", StudyInstanceUID=bench.study, PatientID=None)
    check(len(studies) == 1, f"C-FIND lists the study {len(studies)} times")
    for image in (first, second):
        got = bench.get_one(image, ExplicitVRLittleEndian).dataset.PatientID
        check(got == image.PatientID, f"Patient ID {image.PatientID} came back as {got}")
    return f"{answer.status:04X}, one study, both unchanged"


@case(STORE, MISMATCH, "policy reject: refused, nothing stored", clause="PS3.3 A.1.2",
      expected="a failure Status; only the first is there", variant="patient mismatch rejected")
def two_patients_rejected(bench: Bench) -> str:
    bench.put(bench.image())
    answer = bench.store(bench.image(PatientID=f"Q{bench.token}"))
    check(answer.status >> 12 in (0xA, 0xC) or answer.status in (0x0110, 0x0124), code(answer))
    rows = bench.rows("S", "IMAGE", StudyInstanceUID=bench.study, SeriesInstanceUID=bench.series, SOPInstanceUID=None)
    check(len(rows) == 1, f"{code(answer)}, but {len(rows)} instances are there")
    return code(answer)


# Disk full

@case(STORE, "disk full", "A700, nothing half-written, everything confirmed still there", clause="PS3.4 B.2.3 (A7xx)",
      expected="A700; reads go on; every confirmed instance fetched", variant="disk full")
def disk_full(bench: Bench) -> str:
    big = bytes(1_000_000)
    images = [bench.image(PixelData=big, StudyInstanceUID=bench.study if n % 2 else bench.uid()) for n in range(40)]
    bench.put(*images[:2])
    bench.node.fill_disk()
    confirmed, answer, before = images[:2], None, bench.node.files()
    for image in images[2:]:
        try:
            answer = bench.store(image)
        except (Gone, Silent) as error:
            check(False, f"no Status: {error}")
        if answer.status != 0:
            break
        confirmed.append(image)
    check(answer is not None and answer.status == 0xA700, f"{code(answer) if answer else 'nothing'}")
    for image in confirmed:
        bench.get_one(image, ExplicitVRLittleEndian)
    if not bench.node.on_small_disk:
        left = bench.node.files() - before
        check(not left, f"{len(left)} files more, among them {next(iter(left)).name if left else ''}")
    return f"{code(answer) if answer else ''}; {len(confirmed)} confirmed before, all fetched"


# Large instance

@case(STORE, "large instance", "streamed to disk: < 200 MB of memory above idle", clause="-",
      expected="0000, peak < 200 MB above idle over all processes", variant="large")
def large_instance(bench: Bench) -> str:
    size = int(bench.options["large_mb"]) << 20
    image = bench.image()
    del image.PixelData
    header = encode(image, ExplicitVRLittleEndian) + struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OW", 0, size)
    block = bytes(range(256)) * 4096

    def chunks() -> Iterator[bytes]:
        yield header
        for _ in range(size >> 20):
            yield block

    contexts = [Context(CTImageStorage, (str(ExplicitVRLittleEndian),))]
    with bench.node.memory() as memory, bench.associate(contexts, timeout=180.0) as association:
        answer = bench.store_message(association, chunks(), CTImageStorage, str(image.SOPInstanceUID))
    above = memory["peak"] - memory["idle"]
    check(answer.status == 0, f"{size >> 20} MB: {code(answer)}")
    check(above < 200, f"{size >> 20} MB: {above:.0f} MB above idle")
    found = bench.rows("S", "IMAGE", StudyInstanceUID=bench.study, SeriesInstanceUID=bench.series, SOPInstanceUID=None)
    check(len(found) == 1, "0000, but not found")
    return f"{size >> 20} MB: 0000, {above:.0f} MB above idle"


# Explanation of failures
