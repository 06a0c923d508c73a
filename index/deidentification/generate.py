"""Make the tables of this package from the standard: ``python -m index.deidentification.generate FOLDER``.

What it reads, from `FOLDER`: either ``part15.xml``, the DocBook edition of PS3.15, or ``ps315.json``, which other tools
make of it (keys ``source.edition``, ``rules`` and ``content_items``), and then ``e3_10_1.csv`` (tag, creator, VR), too.
Which SOP Class requires an attribute comes from the tables of PS3.3 that highdicom carries. Nobody edits the tables by
hand. The digest that it prints of Table E.1-1 is that of canonical JSON, so that two who extracted it independently can
compare every cell by comparing one line.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pydicom.datadict import keyword_for_tag, tag_for_keyword

OPTIONS = (
    "retain_safe_private", "retain_uids", "retain_device_identity", "retain_institution_identity",
    "retain_patient_characteristics", "retain_longitudinal_full_dates", "retain_longitudinal_modified_dates",
    "clean_descriptors", "clean_structured_content", "clean_graphics",
)  # fmt: skip
"""The option columns of Table E.1-1, in its order."""

STORAGE = "1.2.840.10008.5.1.4.1.1."
"""How UIDs of storage SOP Classes begin; left out in the table of types."""

_CONTENT_OPTIONS = tuple(option for option in OPTIONS if option not in ("retain_safe_private", "clean_graphics"))
_DOCBOOK = "{http://docbook.org/ns/docbook}"
_HERE = Path(__file__).parent


def _cell(cell: ElementTree.Element) -> str:
    return re.sub(r"[\s\u200b]+", " ", "".join(cell.itertext())).strip()


def _rows(book: ElementTree.Element, identifier: str) -> Iterator[list[str]]:
    table = next(
        element for element in book.iter(f"{_DOCBOOK}table")
        if element.get("{http://www.w3.org/XML/1998/namespace}id") == identifier
    )  # fmt: skip
    for row in table.iterfind(f".//{_DOCBOOK}tbody/{_DOCBOOK}tr"):
        yield [_cell(cell) for cell in row]


def _of_docbook(file: Path) -> dict[str, Any]:
    """Read the three tables of the DocBook file of PS3.15."""
    book = ElementTree.parse(file).getroot()  # noqa: S314  (the standard, from a file of one's own)
    edition = re.search(r"PS3\.15 (\d{4}[a-z])", _cell(book.find(f"{_DOCBOOK}subtitle") or book))
    rules = [
        {
            "name": name, "tag": _plain_tag(tag), "retired": retired == "Y", "in_std_iod": iod == "Y", "basic": basic,
            "options": {option: action for option, action in zip(OPTIONS, actions, strict=True) if action},
        }
        for name, tag, retired, iod, basic, *actions in _rows(book, "table_E.1-1")
    ]  # fmt: skip
    items = [
        {
            "code": code, "scheme": scheme, "meaning": meaning, "value_type": value_type, "basic": basic,
            "options": {option: action for option, action in zip(_CONTENT_OPTIONS, actions, strict=False) if action},
        }
        for code, scheme, meaning, value_type, basic, *actions in _rows(book, "table_E.3.4-1")
    ]  # fmt: skip
    private = [(tag, creator, vr) for tag, creator, vr, *_ in _rows(book, "table_E.3.10-1")]
    return {
        "source": {"edition": edition[1] if edition else "unknown"}, "rules": rules, "content_items": items,
        "private": private,
    }  # fmt: skip


def _plain_tag(tag: str) -> str:
    return "PRIVATE" if "odd" in tag else tag.replace(",", "").strip("()")


def _digest(rules: Iterable[dict[str, Any]]) -> str:
    rows = [
        {
            "name": rule["name"], "retired": rule["retired"], "in_standard_iod": rule["in_std_iod"],
            "basic_profile": rule["basic"], "options": rule["options"],
            "tag": "(gggg,eeee) where gggg is odd" if rule["tag"] == "PRIVATE"
            else f"({rule['tag'][:4]},{rule['tag'][4:]})",
        }
        for rule in rules
    ]  # fmt: skip
    canonical = json.dumps(rows, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _write(name: str, what: str, header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    with (_HERE / name).open("w", encoding="utf-8", newline="") as file:
        file.write(f"# {what}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _attribute_types(tags: Iterable[str]) -> list[tuple[str, str, str, str]]:
    """Return (parent, tag, type 1 or 2, SOP Classes) of the attributes whose action depends on it, and of the UID."""
    standard = resources.files("highdicom") / "_standard"
    classes, modules, attributes = (
        json.loads((standard / name).read_text(encoding="utf-8"))
        for name in ("sop_class_iod_map.json", "iod_module_map.json", "module_attribute_map.json")
    )
    wanted = {keyword_for_tag(tag): tag for tag in (*tags, "00080016") if re.fullmatch("[0-9A-F]{8}", tag)}
    found: dict[tuple[str, str, str], set[str]] = {}
    for sop_class, iod in classes.items():
        types: dict[tuple[str, str], str] = {}
        for module in modules[iod]:
            for attribute in attributes.get(module["key"], ()):
                if attribute["keyword"] in wanted and attribute["type"][0] in "12":
                    parent = f"{tag_for_keyword(attribute['path'][-1]) or 0:08X}" if attribute["path"] else "00000000"
                    where = (parent, wanted[attribute["keyword"]])
                    types[where] = min(types.get(where, "2"), attribute["type"][0])
        for (parent, tag), kind in types.items():
            found.setdefault((parent, tag, kind), set()).add(sop_class)
    return [(*key, " ".join(sorted(uid.removeprefix(STORAGE) for uid in found[key]))) for key in sorted(found)]


def main(folder: Path) -> None:
    """Write the tables into this package; print the edition and the digest of Table E.1-1."""
    book = folder / "part15.xml"
    tables = _of_docbook(book) if book.exists() else json.loads((folder / "ps315.json").read_text(encoding="utf-8"))
    edition, rules, items = tables["source"]["edition"], tables["rules"], tables["content_items"]
    digest = _digest(rules)
    _write(
        "basic_profile.csv",
        f"DICOM PS3.15 {edition}, Table E.1-1; SHA-256 {digest}",
        ("tag", "name", "retired", "iod", "basic", *OPTIONS),
        (
            [
                rule["tag"], rule["name"], "NY"[rule["retired"]], "NY"[rule["in_std_iod"]], rule["basic"],
                *(rule["options"].get(option, "") for option in OPTIONS),
            ]
            for rule in rules
        ),
    )  # fmt: skip
    _write(
        "content_items.csv", f"DICOM PS3.15 {edition}, Table E.3.4-1",
        ("code", "scheme", "meaning", "value_type", "basic", *_CONTENT_OPTIONS),
        ([*(item[key] for key in ("code", "scheme", "meaning", "value_type", "basic")),
          *(item["options"].get(option, "") for option in _CONTENT_OPTIONS)] for item in items),
    )  # fmt: skip
    private = tables.get("private") or list(csv.reader((folder / "e3_10_1.csv").open(encoding="utf-8")))
    _write(
        "safe_private.csv", f"DICOM PS3.15 {edition}, Table E.3.10-1", ("tag", "creator", "vr"),
        ([tag.upper().replace("XX", "xx").strip("()"), creator, vr] for tag, creator, vr in private),
    )  # fmt: skip
    types = _attribute_types(rule["tag"] for rule in rules if "/" in rule["basic"] or rule["basic"] == "Z")
    _write(
        "attribute_types.csv", "DICOM PS3.3 by highdicom, types 1 and 2 (also 1C and 2C) of attributes of Table E.1-1",
        ("parent", "tag", "type", "sop_classes"), types,
    )  # fmt: skip
    sys.stdout.write(f"PS3.15 {edition}: {len(rules)} attributes, {len(items)} content items, {len(private)} private\n")
    sys.stdout.write(f"Table E.1-1: SHA-256 {digest}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
