"""A picture of a similarity query: what was asked about beside its ranked neighbours, fetched by C-GET."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from commands.asked_about import Asked, value_of
from commands.console import err, fail
from commands.pictures import Picture, sheet
from index.decoding import frames, open_image, stored_pixels
from index.encoders.pixels import pixel_aspect
from index.encoders.windowing import grey
from index.neighbours import Region
from scp import client
from scp.client import Requestor
from scp.contexts import STUDY_ROOT_FIND, STUDY_ROOT_GET
from scp.requestor import Peer

_PER_ROW = 6
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_ABOUT = (
    "SOPClassUID", "PatientName", "PatientID", "StudyDescription", "SeriesDescription", "Modality", "InstanceNumber",
)  # fmt: skip
_SYNTAXES = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
_NOT_PICTURES = frozenset({"SEG", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "ECG", "REG", "DOC"})
_RATHER_NOT = frozenset({"XA", "OT"})
"""Projections of a scan, key pictures: shown of a study that has nothing else."""


@dataclass(frozen=True)
class _Image:
    """An image at the peer: its UIDs, what is known about it, and which frame and part of it is meant."""

    found: Dataset
    frame: int = 0
    region: Region | None = None


class Sheet:
    """Fetches images from a peer and draws them.

    Parameters
    ----------
    peer
        Who has answered, under its first AE title.
    requestor
        Who we are to it.
    """

    def __init__(self, peer: Peer, requestor: Requestor) -> None:
        self._peer = peer
        self._requestor = requestor

    def write(self, file: Path, asked: Asked, answers: list[Dataset]) -> None:
        """Write the sheet as PNG; an image that cannot be had ends the command."""
        with tempfile.TemporaryDirectory(prefix="tharsis-") as name:
            folder = Path(name)
            pictures = self._query(asked, folder)
            for answer in answers:
                picture = self._neighbour(answer, folder)
                if picture is not None:
                    pictures.append(picture)
        if not pictures:
            fail("there is no image to draw")
        rows = [pictures[start : start + _PER_ROW] for start in range(0, len(pictures), _PER_ROW)]
        sheet(rows, file, title="A query and the most similar cases (score 1: alike)")
        err.print(f"{len(pictures)} images drawn to {file}", highlight=False)

    def _query(self, asked: Asked, folder: Path) -> list[Picture]:
        """Return the picture of what was asked about, none for a vector."""
        if asked.files:
            return [_drawn(asked.files[len(asked.files) // 2], folder, title="query", subtitle="sent, not archived")]
        image = self._asked_image(asked)
        return [] if image is None else [self._picture(image, folder, title="query")]

    def _asked_image(self, asked: Asked) -> _Image | None:
        if asked.reference:
            return self._referred(asked.reference)
        block = asked.block
        uids = {uid: block[f"Query{uid}"] for uid in _UIDS if f"Query{uid}" in block}
        if not uids:
            return None
        region = block.get("QueryRegion")
        image = self._middle(**uids)
        if image is None:
            return None
        return _Image(image.found, block.get("QueryFrameNumber", 0), None if region is None else tuple(region))

    def _referred(self, reference: str) -> _Image | None:
        """Return an image of what a reference names, looked up as the node does: UIDs, accession number, patient ID."""
        for keyword in (*_UIDS, "AccessionNumber", "PatientID"):
            if keyword in _UIDS and not reference.replace(".", "").isdecimal():
                continue
            image = self._middle(**{keyword: reference})
            if image is not None:
                return image
        return None

    def _neighbour(self, answer: Dataset, folder: Path) -> Picture | None:
        matched = str(value_of(answer, "MatchedSOPInstanceUID") or "")
        series = str(answer.get("SeriesInstanceUID") or "")
        uids = {"StudyInstanceUID": str(answer.StudyInstanceUID)}
        uids |= {"SeriesInstanceUID": series} if series else {}
        uids |= {"SOPInstanceUID": matched} if matched else {}
        image = self._middle(**uids)
        if image is None:  # deleted meanwhile
            return None
        title = f"#{value_of(answer, 'Rank')}  {value_of(answer, 'Score'):.4f}"
        return self._picture(_Image(image.found, int(value_of(answer, "MatchedFrameNumber") or 0)), folder, title=title)

    def _middle(self, **keys: str) -> _Image | None:
        """Return the middle one of the images with these keys, of their latest study; None when there is none."""
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "IMAGE"
        identifier.SpecificCharacterSet = "ISO_IR 192"
        for keyword in (*_UIDS, *_ABOUT, "StudyDate", "SeriesNumber"):
            setattr(identifier, keyword, keys.get(keyword))
        for keyword, value in keys.items():
            setattr(identifier, keyword, value)
        found = [
            match
            for match in client.find(self._peer, identifier, STUDY_ROOT_FIND, self._requestor, relational=True)
            if str(match.Modality) not in _NOT_PICTURES
        ]
        if not found:
            return None
        latest = max((str(match.StudyDate or ""), str(match.StudyInstanceUID)) for match in found)
        found = [match for match in found if str(match.StudyInstanceUID) == latest[1]]
        own = _series_to_show(found)
        return _Image(own[len(own) // 2])

    def _picture(self, image: _Image, folder: Path, *, title: str) -> Picture:
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "IMAGE"
        for keyword in _UIDS:
            setattr(identifier, keyword, image.found[keyword].value)
        wanted = [(str(image.found.SOPClassUID), syntax) for syntax in _SYNTAXES]
        answers = list(
            client.get(self._peer, identifier, folder, STUDY_ROOT_GET, self._requestor, objects=wanted)
        )
        path = folder / f"{image.found.SOPInstanceUID}.dcm"
        if not path.exists():
            why = answers[-1].status if answers else "no answer"
            fail(f"{self._peer} did not send the image {image.found.SOPInstanceUID}: {why}")
        return _drawn(
            path, folder, title=title, subtitle=_about(image), frame=image.frame, region=image.region
        )


def _drawn(
    path: Path, folder: Path, *, title: str, subtitle: str, frame: int = 0, region: Region | None = None
) -> Picture:
    """Return the picture of an image as it lies in the file, with the greys and the pixel shape that encoders see."""

    def new_file(_size: int) -> Path:
        return Path(tempfile.mkstemp(dir=folder)[1])

    try:
        with open_image(path, new_file) as (dataset, file):
            count = int(dataset.get("NumberOfFrames", 1) or 1)
            index = frame - 1 if frame else count // 2
            syntax = str(dataset.file_meta.TransferSyntaxUID)
            [(stored, properties)] = frames(dataset, stored_pixels(dataset, file), syntax, indices=[index])
            seen = grey(dataset, index, stored, str(properties.get("photometric_interpretation", "MONOCHROME2")))
            shape = pixel_aspect(dataset, index)
    except Exception as error:  # noqa: BLE001  (headers and pixels of strangers make the decoders raise anything)
        fail(f"the image {path.name} cannot be drawn: {error}")
    return Picture(title, seen.values, subtitle, window=(0.0, 1.0), region=region, pixel_aspect=shape)


def _series_to_show(found: Sequence[Dataset]) -> list[Dataset]:
    """Return the images of the first series in their order; projections and pictures of results only if all are.

    A scan's projections have the lowest number, and are not what is compared.
    """
    first = min(
        found,
        key=lambda match: (
            str(match.Modality) in _RATHER_NOT, _number(match.SeriesNumber), str(match.SeriesInstanceUID)
        ),
    )  # fmt: skip
    own = (match for match in found if match.SeriesInstanceUID == first.SeriesInstanceUID)
    return sorted(own, key=lambda match: _number(match.InstanceNumber))


def _about(image: _Image) -> str:
    """Whose image this is and which one, a line each."""
    found = image.found
    study, series = (str(found.get(keyword) or "") for keyword in ("StudyDescription", "SeriesDescription"))
    number = f"image {found.InstanceNumber}" if found.get("InstanceNumber") else ""
    which = ", ".join(filter(None, [series, number, f"frame {image.frame}" if image.frame else ""]))
    lines = (str(found.get("PatientName") or found.get("PatientID") or ""), study, which)
    return "\n".join(line for line in lines if line)


def _number(value: object) -> int:
    text = str(value if value is not None else "").strip()
    return int(text) if text.lstrip("-").isdecimal() else 0
