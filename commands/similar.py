"""``tharsis similar``: ask a Tharsis node for similar cases, through either door, and look at what it found."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from pydicom.dataset import Dataset

from commands.asked_about import Asked, NoBlock, value_of
from commands.console import FAILED, UNREACHABLE, USAGE, JsonOption, fail
from commands.network import (
    DEFAULT_PEER,
    DEFAULT_TITLE,
    PeerOption,
    TitleOption,
    TlsCaOption,
    TlsCertificateOption,
    TlsKeyOption,
    TlsOption,
    columns_of,
    identifier_from,
    peer_from,
    print_answers,
    tls_from,
)
from config.ae_titles import SIMILARITY_SUFFIX
from index.keys import Level
from index.neighbours import MOST_RESULTS, Aggregation, Exclude, Region, SearchMode
from scp import client
from scp.client import Requestor
from scp.contexts import SIMILARITY_FIND, STUDY_ROOT_FIND
from scp.errors import PeerError
from scp.private_elements import ELEMENTS, dcmtk_dictionary, put_block
from scp.requestor import Peer

_REFERENCE_KEYS = ("PatientID", "StudyDescription", "AccessionNumber", "StudyID")
_ALSO_SHOWN = ("PatientID", "StudyDescription")
_ANSWERED = tuple(keyword for keyword, element in ELEMENTS.items() if element.number >= 0x20)
_IN_TABLE = {
    Level.STUDY: ("PatientID", "StudyDate", "StudyDescription", "StudyInstanceUID"),
    Level.SERIES: ("PatientID", "StudyDescription", "Modality", "SeriesDescription", "SeriesInstanceUID"),
    Level.IMAGE: ("PatientID", "StudyDescription", "InstanceNumber", "SOPInstanceUID"),
}
"""Columns for people, where a terminal has room for one UID; JSON has everything."""


def similar(
    study: Annotated[str | None, typer.Option(metavar="UID", help="Like this study.")] = None,
    series: Annotated[str | None, typer.Option(metavar="UID", help="Like this series.")] = None,
    image: Annotated[str | None, typer.Option(metavar="UID", help="Like this image (SOP Instance UID).")] = None,
    frame: Annotated[int | None, typer.Option(min=1, help="Only this frame of --image, from 1.")] = None,
    region: Annotated[
        str | None, typer.Option(metavar="X,Y,WIDTH,HEIGHT", help="Only this part of --image, in pixels from 0.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="REF", help="Like an accession number, a patient ID (its latest study) or a UID."),
    ] = None,
    vector: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", exists=True, help="Like this vector of the model's length.")
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(metavar="IMAGE.dcm", exists=True, help="Like this image, which is sent and not archived; "
                     "repeat it for more slices of one series."),
    ] = None,
    keys: Annotated[
        list[str] | None, typer.Option("--key", metavar="KEY[=VALUE]", help="Only among these, and show them.")
    ] = None,
    level: Annotated[Level, typer.Option(case_sensitive=False, help="What to list.")] = Level.SERIES,
    k: Annotated[int, typer.Option("-k", min=1, max=MOST_RESULTS, help="How many.")] = 10,
    min_score: Annotated[float, typer.Option(min=0.0, max=1.0, help="None below this score.")] = 0.0,
    exclude: Annotated[
        list[Exclude] | None,
        typer.Option(case_sensitive=False, help="What of the query's own surroundings to leave out; SAME_SERIES "
                     "when not given; may be repeated."),
    ] = None,
    aggregation: Annotated[
        Aggregation | None, typer.Option(case_sensitive=False, help="How series are compared by their images.")
    ] = None,
    mode: Annotated[SearchMode | None, typer.Option(case_sensitive=False, help="How the index is searched.")] = None,
    model: Annotated[str, typer.Option(metavar="MODEL_ID", help="Encoder to compare by, not the active one.")] = "",
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Also fetch the images (C-GET) and draw them beside each other."),
    ] = None,
    peer: PeerOption = DEFAULT_PEER,
    aet: TitleOption = DEFAULT_TITLE,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertificateOption = None,
    tls_key: TlsKeyOption = None,
    dictionary: Annotated[
        bool, typer.Option("--dcmtk-dictionary", help="Print the private block as a dictionary for DCMTK and stop.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask a Tharsis node for similar cases: like a study, series, image, region, vector or file.

    The node's settings have to give our AE title the right "similar", and "move" for --picture.

    Examples:  tharsis similar --series 1.2.3 -k 5 --exclude SAME_STUDY --key Modality=CT

    tharsis similar --image 1.2.3.4 --region 120,80,64,64 --level IMAGE --picture found.png

    tharsis similar --reference A4711 --min-score 0.9

    tharsis similar --file slice1.dcm --file slice2.dcm --aggregation LATE_INTERACTION
    """
    if dictionary:
        typer.echo(dcmtk_dictionary(), nl=False)
        return
    asked = _asked(
        study=study, series=series, image=image, frame=frame, region=region, reference=reference, vector=vector,
        files=file or [],
    )  # fmt: skip
    options = {
        "MaximumResults": k,
        "MinimumScore": min_score or None,
        "ModelID": model or None,
        "Aggregation": aggregation.value if aggregation else None,
        "Exclude": [each.value for each in exclude or [Exclude.SAME_SERIES]],
        "SearchMode": mode.value if mode else None,
    }
    told = {keyword: value for keyword, value in {**asked.block, **options}.items() if value is not None}
    target = peer_from(peer, tls_from(wanted=tls, ca=tls_ca, certificate=tls_cert, key=tls_key))
    identifier = similarity_identifier([*_ALSO_SHOWN, *(keys or [])], level, **told)
    requestor = Requestor(aet)
    try:
        answers = _answers(target, requestor, identifier, asked)
        _print(answers, identifier, keys or [], as_json=as_json)
        if picture is not None:
            from commands.similar_sheet import Sheet  # matplotlib takes its time

            Sheet(target, requestor).write(picture, asked, answers)
    except (client.RequestFailed, NoBlock) as error:
        fail(str(error))
    except PeerError as error:
        fail(str(error), UNREACHABLE)


def _asked(
    *,
    study: str | None,
    series: str | None,
    image: str | None,
    frame: int | None,
    region: str | None,
    reference: str | None,
    vector: Path | None,
    files: list[Path],
) -> Asked:
    """Return what the options ask about; a mistake in them ends the command."""
    if sum(map(bool, (study, series, image, reference, vector, files))) != 1:
        fail("give exactly one of --study, --series, --image, --reference, --vector and --file", USAGE)
    if (frame or region) and not image:
        fail("--frame and --region go with --image", USAGE)
    if reference or files:
        return Asked({}, reference or "", tuple(files))
    if vector:
        return Asked({"QueryVector": _read_vector(vector)})
    named = {
        "QueryStudyInstanceUID": study,
        "QuerySeriesInstanceUID": series,
        "QuerySOPInstanceUID": image,
        "QueryFrameNumber": frame,
        "QueryRegion": list(_parse_region(region)) if region else None,
    }
    return Asked({keyword: value for keyword, value in named.items() if value is not None})


def _parse_region(text: str) -> Region:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() and int(part) <= 0xFFFF for part in parts):
        fail(f"--region: expected X,Y,WIDTH,HEIGHT in pixels, got {text!r}", USAGE)
    x, y, width, height = map(int, parts)
    return x, y, width, height


def _read_vector(path: Path) -> bytes:
    """Return the vector as the bytes of an OF element."""
    try:
        values = np.load(path, allow_pickle=False)
        return np.ascontiguousarray(np.squeeze(values), dtype="<f4").reshape(-1).tobytes()
    except (OSError, ValueError, TypeError) as error:
        fail(f"{path} is no array of numbers as numpy.save writes it: {error}", USAGE)


def _answers(target: Peer, requestor: Requestor, identifier: Dataset, asked: Asked) -> list[Dataset]:
    """Send what has to be sent, ask, and return the answers."""
    if not asked.needs_second_title:
        return list(client.find(target, identifier, SIMILARITY_FIND, requestor))
    second = Peer(target.host, target.port, f"{target.title}{SIMILARITY_SUFFIX}", target.tls)
    if asked.reference:
        free = [keyword for keyword in _REFERENCE_KEYS if not str(identifier.get(keyword) or "")]
        if not free:
            fail(f"--reference needs one of the keys {', '.join(_REFERENCE_KEYS)} for itself", USAGE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a UID may be longer than the key's VR allows; the node does not mind
            setattr(identifier, free[0], f"~{asked.reference}")
    for sent in client.send(second, asked.files, requestor):
        if sent.error:
            fail(f"{sent.path}: {sent.error}", FAILED)
    return list(client.find(second, identifier, STUDY_ROOT_FIND, requestor))


def _print(answers: list[Dataset], identifier: Dataset, keys: list[str], *, as_json: bool) -> None:
    """Print all that was answered as JSON, or a table of what people look for and of the keys that they named."""
    level = Level(identifier.QueryRetrieveLevel)
    named = [key.partition("=")[0] for key in keys]
    columns = list(dict.fromkeys([*named, *_IN_TABLE[level]]))
    if as_json:
        columns = columns_of(identifier, keys)
    rankings = [_ranking(answer, everything=as_json) for answer in answers]
    print_answers(answers, columns, as_json=as_json, first=rankings)


def _ranking(answer: Dataset, *, everything: bool) -> dict[str, str]:
    """Rank and score; with `everything`, all elements of the private block, empty where they are."""
    found = {"Rank": str(value_of(answer, "Rank")), "Score": f"{value_of(answer, 'Score'):.4f}"}
    if everything:
        found |= {keyword: str(value_of(answer, keyword) or "") for keyword in _ANSWERED if keyword not in found}
    return found


def similarity_identifier(keys: list[str], level: Level, **block: Any) -> Dataset:
    """Return the Identifier of a similarity query: ordinary keys as filters, and the private block."""
    identifier = identifier_from(keys, level)
    identifier.StudyInstanceUID = identifier.get("StudyInstanceUID")
    if level.depth >= Level.SERIES.depth:
        identifier.SeriesInstanceUID = identifier.get("SeriesInstanceUID")
    put_block(identifier, block)
    return identifier
