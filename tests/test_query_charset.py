r"""Character sets of requests and answers (PS3.5 6.1, PS3.3 C.12.1.1.2): decoded by theirs, answered without loss."""

from __future__ import annotations

import unicodedata
from io import BytesIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.charset import decode_bytes, python_encoding
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.valuerep import PN_DELIMS, PersonName

from index.archive import Archive
from index.charset import charset_in, charset_of, choose_charset, encoded
from index.code_extensions import REPERTOIRES
from index.query import Model, find, parse_identifier

STUDY = "1.2.826.0.1.3680043.9.7133.1"


# Bytes as the standard has them


EXAMPLES = [
    # The examples of PS3.5 Annexes H, I, J and K
    (("", "ISO 2022 IR 87"),
     b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
     "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    (("ISO 2022 IR 13", "ISO 2022 IR 87"),
     b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
     "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
    (("", "ISO 2022 IR 149"),
     b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
     "Hong^Gildong=洪^吉洞=홍^길동"),
    (("", "ISO 2022 IR 58"),
     b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=", "Zhang^XiaoDong=张^小东="),
    (("GB18030",), b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab=", "Wang^XiaoDong=王^小东="),
    (("GBK",), b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab=", "Wang^XiaoDong=王^小东="),
    (("ISO_IR 192",), "Wang^XiaoDong=王^小東=".encode(), "Wang^XiaoDong=王^小東="),
    (("ISO_IR 13",), b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
    (("ISO_IR 100",), b"Buc^J\xe9r\xf4me", "Buc^Jérôme"),
    (("ISO_IR 101",), b"W\xb3och", "Włoch"),
    (("ISO_IR 109",), b"\xa1al", "Ħal"),
    (("ISO_IR 110",), b"\xd1or\xfei", "Ņorūi"),
    (("ISO_IR 126",), b"\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2", "Διονυσιος"),
    (("ISO_IR 127",), b"\xe2\xc8\xc7\xe6\xea^\xe4\xe6\xd2\xc7\xd1", "قباني^لنزار"),
    (("ISO_IR 138",), b"\xf9\xf8\xe5\xef^\xe3\xe1\xe5\xf8\xe4", "שרון^דבורה"),
    (("ISO_IR 144",), b"\xbb\xee\xdace\xdc\xd1yp\xd3", "Люкceмбypг"),
    (("ISO_IR 148",), b"\xc7avu\xfeo\xf0lu", "Çavuşoğlu"),
    (("ISO_IR 166",), b"\xb9\xd2\xc1", "นาม"),
    (("ISO_IR 203",), b"\xa4uro^\xbduvre", "€uro^œuvre"),
    (("ISO 2022 IR 100", "ISO 2022 IR 144"), b"M\xfcller^\x1b-L\xbb\xee\xda\x1b-A^\xfc", "Müller^Люк^ü"),
    (("", "ISO 2022 IR 159"), b"\x1b$(D\x30\x21\x1b(B", "丂"),
]  # fmt: skip
"""Specific Character Set, the bytes of a name in it, and the name."""


@pytest.mark.parametrize(("told", "raw", "text"), EXAMPLES)
def test_values_of_the_standard_are_read_and_written_as_it_has_them(told, raw, text):
    charset = charset_of(told)
    assert charset.is_known
    assert charset.decode(raw, "PN") == text
    assert charset.encode(text, "PN") == raw


@pytest.mark.parametrize(
    ("told", "raw", "vr", "text"),
    [
        # delimiters reset the set, also where the writer forgot to name the first one again (PS3.5 6.1.2.5.3)
        (("ISO 2022 IR 100", "ISO 2022 IR 144"), b"\x1b-L\xbb\xee^\xfc", "PN", "Лю^ü"),
        (("ISO 2022 IR 100", "ISO 2022 IR 144"), b"\x1b-L\xbb\xee=\xfc", "PN", "Лю=ü"),
        (("ISO 2022 IR 100", "ISO 2022 IR 144"), b"\x1b-L\xbb\xee\\\xfc", "LO", "Лю\\ü"),
        (("ISO 2022 IR 100", "ISO 2022 IR 144"), b"\x1b-L\xbb\xee\r\n\xfc", "LT", "Лю\r\nü"),
        (("ISO 2022 IR 100", "ISO 2022 IR 144"), b"\x1b-L\xbb^\xfc", "LO", "Л^ќ"),  # no delimiter outside of names
        (("", "ISO 2022 IR 149"), b"\x1b$)C\xfb\xf3^\xd1\xce", "PN", "洪^吉"),  # the escape sequence was forgotten
        # the second byte of a two-byte character may be that of a backslash, caret or equals sign
        (("GBK",), "誠^功".encode("gbk"), "PN", "誠^功"),
        (("GB18030",), "誠=峔".encode("gb18030"), "PN", "誠=峔"),
        (("", "ISO 2022 IR 87"), b"\x1b$B\x21\x5c\x21\x5e\x21\x3d\x1b(B", "PN", "＋±―"),
        (("ISO_IR 13",), "ソ表能^十".encode("shift_jis"), "PN", "ソ表能^十"),  # Shift JIS under a wrong name
        # escape sequences that the Specific Character Set did not announce, and unknown ones
        (("ISO_IR 100",), b"\xfc\x1b$B;3\x1b(B", "LO", "ü山"),
        (("ISO_IR 100",), b"a\x1bZb", "LO", "a\x1bZb"),
        ((), b"\x1b$B;3ED\x1b(B", "LO", "山田"),
        # bytes that the set does not have
        (("ISO_IR 126",), b"\xc4\xff", "LO", "Δÿ"),
        (("ISO_IR 192",), b"M\xfcller", "LO", "M\ufffdller"),
        ((), b"M\xfcller", "LO", "Müller"),
        (("ISO_IR 192",), "Müller".encode(), "CS", "MÃ¼ller"),  # a code string is not in that set
    ],
)
def test_what_writers_do_is_understood(told, raw, vr, text):
    assert charset_of(told).decode(raw, vr) == text


@pytest.mark.parametrize(
    ("told", "terms", "known"),
    [
        (("ISO_IR 100",), ("ISO_IR 100",), True),
        (("ISO IR 100",), ("ISO_IR 100",), True),
        (("ISO_IR_100",), ("ISO_IR 100",), True),
        (("ISO-IR-100 ",), ("ISO_IR 100",), True),
        (("iso_ir 192",), ("ISO_IR 192",), True),
        (("UTF-8",), ("ISO_IR 192",), True),
        (("ISO_IR192",), ("ISO_IR 192",), True),
        (("", "ISO-2022-IR 87"), ("", "ISO 2022 IR 87"), True),
        (("ISO_IR 6", "ISO_2022_IR_87"), ("ISO 2022 IR 6", "ISO 2022 IR 87"), True),
        (("ISO_IR 100", "ISO_IR 144"), ("ISO 2022 IR 100", "ISO 2022 IR 144"), True),
        (("ISO 2022 IR 87",), ("", "ISO 2022 IR 87"), True),
        (("ISO 2022 GBK",), ("GBK",), True),
        (("ISO_IR 999",), ("ISO_IR 999",), False),
        (("NONSENSE",), ("NONSENSE",), False),
        (("ISO_IR 192", "ISO 2022 IR 87"), ("ISO_IR 192",), False),
        (("", "NONSENSE"), ("", "NONSENSE"), False),
        ((), (), True),
        (("",), (), True),
    ],
)
def test_terms_as_writers_spell_them(told, terms, known):
    charset = charset_of(told)
    assert (charset.terms, charset.is_known) == (terms, known)


@pytest.mark.parametrize("value", [5, ["ISO_IR 100", 5], 1.5])
def test_a_specific_character_set_that_is_no_text_is_unknown(value):
    dataset = Dataset()
    dataset.add(DataElement("SpecificCharacterSet", "US", value, already_converted=True))
    assert not charset_in(dataset).is_known


ALL = [term for term in python_encoding if term.startswith("ISO_IR") or term in ("GB18030", "GBK")]
EXTENDED = [("", term) for term in python_encoding if term.startswith("ISO 2022 IR")]
EXTENDED += [("ISO 2022 IR 13", "ISO 2022 IR 87"), ("ISO 2022 IR 100", "ISO 2022 IR 126", "ISO 2022 IR 144"),
             ("", "ISO 2022 IR 87", "ISO 2022 IR 159"), ("ISO 2022 IR 101", "ISO 2022 IR 149")]  # fmt: skip
EVERY = [*((term,) for term in ALL), ("ISO_IR 203",), *EXTENDED]


def repertoire(told):
    """Characters that the set represents, the ones that delimit and wild cards aside."""
    charset = charset_of(told)
    candidates = [chr(code) for code in (*range(0x20, 0x7F), *range(0xA1, 0x530), *range(0x5D0, 0x600), 0x20AC,
                                         *range(0xE01, 0xE40), *range(0x3041, 0x3100), *range(0x4E00, 0x4F00),
                                         *range(0xAC00, 0xAC80), *range(0xFF61, 0xFFA0), *range(0x8AA0, 0x8AB0))]
    return [each for each in candidates if each not in "\\^=*? " and charset.encode(each, "PN") is not None]


@pytest.mark.slow
@pytest.mark.parametrize("told", EVERY, ids="+".join)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_a_set_represents_is_found_and_comes_back_equal(told, data, tmp_path_factory, make_dataset, transmit):
    """Property: encode → store → ask → answer, for names of three groups and for texts of several values."""
    part = st.text(repertoire(told), min_size=1, max_size=5)
    name = "=".join("^".join(data.draw(st.lists(part, min_size=1, max_size=3))) for _ in range(3))
    texts = data.draw(st.lists(part, min_size=1, max_size=2))
    charset = charset_of(told)
    raw = charset.encode(name, "PN")
    assert raw is not None
    assert charset.decode(raw, "PN") == name
    stored = make_dataset(1, SpecificCharacterSet=list(charset.terms), PatientName=name, PixelData=None,
                          AdmittingDiagnosesDescription=texts)  # fmt: skip
    archive = _one(tmp_path_factory, encoded(stored), stored.file_meta)
    for group in (name, *name.split("=")):
        identifier = Dataset()
        identifier.QueryRetrieveLevel, identifier.SpecificCharacterSet = "STUDY", list(charset.terms)
        identifier.PatientName, identifier.AdmittingDiagnosesDescription = group, texts[0]
        query = parse_identifier(transmit(identifier, implicit=data.draw(st.booleans())), Model.STUDY_ROOT)
        (answer,) = find(archive, query)
        assert str(answer.PatientName) == name
        assert answer["AdmittingDiagnosesDescription"].value == (texts[0] if len(texts) == 1 else texts)
        if not (name + "".join(texts)).isascii():
            assert tuple(_listed(answer.SpecificCharacterSet)) == charset.terms
        sent = encoded(answer)["PatientName"].value.original_string
        assert charset.decode(sent, "PN") == name
    archive.close()


def _listed(value):
    return [value] if isinstance(value, str) else list(value)


def _one(tmp_path_factory, dataset, meta):
    """An archive of one instance."""
    archive = Archive(tmp_path_factory.mktemp("one"))
    archive.ingest(_part_10(dataset, meta))
    return archive


def _part_10(dataset, meta):
    buffer = BytesIO()
    FileDataset("", dataset, file_meta=meta).save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


READ_BY_OTHERS = [each for each in EVERY if each[-1] not in ("ISO_IR 203", "ISO 2022 IR 58")]


@pytest.mark.parametrize("told", READ_BY_OTHERS, ids="+".join)
def test_another_reader_reads_what_is_written(told):
    """pydicom's own decoder, for what each set has most of; of IR 58 it leaves the escape sequences in the text."""
    from pydicom.charset import convert_encodings

    charset, characters = charset_of(told), repertoire(told)
    encodings = convert_encodings(list(told))
    for start in range(0, len(characters), 7):
        part = "".join(characters[start : start + 7])
        raw = charset.encode(f"A^{part}^a", "PN")
        assert decode_bytes(raw, encodings, PN_DELIMS) == f"A^{part}^a"


def test_names_of_every_set_over_an_association(start_node, make_dataset):
    """What is stored, asked for and answered goes through a node, byte for byte as the standard has it."""
    from pynetdicom import AE

    from scp.contexts import STUDY_ROOT_FIND

    node = start_node()
    for number, (told, raw, _) in enumerate(EXAMPLES):
        stored = make_dataset(number, PatientID=str(number), StudyInstanceUID=f"1.{number}", PixelData=None,
                              SeriesInstanceUID=f"2.{number}", SpecificCharacterSet=list(told))  # fmt: skip
        stored.PatientName = DataElement("PatientName", "PN", PersonName(raw), already_converted=True).value
        node.archive.ingest(_part_10(stored, stored.file_meta))
    entity = AE("VIEWER")
    entity.add_requested_context(STUDY_ROOT_FIND)
    assoc = entity.associate("127.0.0.1", node.port, ae_title="THARSIS")
    for number, (told, raw, text) in enumerate(EXAMPLES):
        identifier = Dataset()
        identifier.QueryRetrieveLevel, identifier.SpecificCharacterSet = "STUDY", list(told)
        identifier.StudyInstanceUID = f"1.{number}"
        identifier.add(DataElement("PatientName", "PN", PersonName(raw), already_converted=True))
        (status, match), (final, _) = assoc.send_c_find(identifier, STUDY_ROOT_FIND)
        assert (status.Status, final.Status) == (0xFF00, 0x0000), text
        assert match.get_item("PatientName").value.rstrip(b" =") == raw.rstrip(b" ="), text
    assoc.release()


# The character set of the answer


@pytest.mark.parametrize(
    ("texts", "candidates", "expected"),
    [
        (["Doe"], [()], ()),
        (["Doe"], [("ISO_IR 100",)], ("ISO_IR 100",)),
        (["Müller"], [(), ("ISO_IR 100",)], ("ISO_IR 100",)),
        (["Müller"], [("", "ISO 2022 IR 87"), ("ISO_IR 100",)], ("ISO_IR 100",)),  # ISO-IR 6 is ASCII and no more
        (["Müller", "山田"], [("ISO 2022 IR 100", "ISO 2022 IR 87")], ("ISO 2022 IR 100", "ISO 2022 IR 87")),
        (["Müller", "Иванов"], [("ISO_IR 100",), ("ISO_IR 144",)], ("ISO_IR 192",)),
        (["€"], [("ISO_IR 100",), ("ISO_IR 203",)], ("ISO_IR 203",)),
        (["¥"], [("ISO_IR 13",)], ("ISO_IR 192",)),
        (["M\ufffdller"], [("ISO_IR 100",)], ("ISO_IR 192",)),
    ],
)
def test_the_first_set_that_loses_nothing_is_chosen(texts, candidates, expected):
    assert choose_charset([("PN", text) for text in texts], map(charset_of, candidates)).terms == expected


def test_every_repertoire_of_the_standard_is_there():
    numbers = {term.rpartition(" ")[2] for term in python_encoding if " IR " in term or "_IR " in term}
    assert numbers - {name.removeprefix("IR ") for name in REPERTOIRES} == {"6", "192"}


# Text that Unicode normalisation changes


@pytest.mark.parametrize(
    ("stored", "asked"),
    [("Scha\u0308del", "Schädel"), ("Schädel", "Scha\u0308del"), ("樂\uf914", "樂樂"), ("Scha\u0308del", "Sch?del")],
)
def test_text_is_compared_in_nfc_and_answered_as_it_was_sent(stored, asked, archive, make_instance, ask):
    from pydicom.sequence import Sequence

    code = Dataset()
    code.CodeMeaning = stored
    archive.ingest(make_instance(1, SpecificCharacterSet="ISO_IR 192", StudyDescription=stored,
                                 ProcedureCodeSequence=Sequence([code])))  # fmt: skip
    wanted = Dataset()
    wanted.CodeMeaning = asked
    (answer,) = ask(archive, SpecificCharacterSet="ISO_IR 192", StudyDescription=asked,
                    ProcedureCodeSequence=Sequence([wanted]))  # fmt: skip
    assert answer.StudyDescription == stored
    assert answer.ProcedureCodeSequence[0].CodeMeaning == stored


# Real files and answers


def charset_files(shared_data):
    return sorted((shared_data / "pydicom" / "src" / "pydicom" / "data" / "charset_files").glob("*.dcm"))


def without_accents(text):
    return "".join(each for each in unicodedata.normalize("NFD", text) if unicodedata.category(each) != "Mn")


@pytest.mark.filterwarnings("ignore")
def test_real_names_of_every_character_set_are_found_in_any_group_and_returned_without_loss(
    shared_data, tmp_path, ask
):
    seen = 0
    for path in charset_files(shared_data):
        source = dcmread(path)
        name = str(source.get("PatientName", ""))
        if not name or not source.get("StudyInstanceUID"):
            continue
        archive = Archive(tmp_path / path.stem)
        archive.ingest(path)
        groups = [group for group in name.split("=") if group.strip("^ ")]
        asked = [name, *groups, *[group.upper() for group in groups], *[group.lower() for group in groups]]
        asked += [group[0] + "*" for group in groups] + ["*" + group[-1] for group in groups]
        if not any("\u3040" <= character <= "\u30ff" or "\u0590" <= character <= "\u06ff" for character in name):
            asked += [without_accents(group) for group in groups]
        for value in asked:
            charsets = ["ISO_IR 192"]
            if value in (name, *groups):  # a variant need not exist in the file's own character set
                charsets.append(source.get("SpecificCharacterSet", ""))
            for charset in charsets:
                answers = ask(archive, SpecificCharacterSet=charset, PatientName=value)
                assert len(answers) == 1, f"{path.name}: {value!r} in {charset}"
                assert str(answers[0].PatientName) == name, f"{path.name}: {charset}"
                seen += 1
        for charset in (None, "ISO_IR 100", "ISO_IR 144"):  # cannot represent most of them: never lossy all the same
            more = {"SpecificCharacterSet": charset} if charset else {}
            (answer,) = ask(archive, PatientName="", StudyDescription="", **more)
            assert str(answer.PatientName) == name
        assert ask(archive, SpecificCharacterSet="ISO_IR 192", PatientName=name + "x") == []
    assert seen > 100


@pytest.mark.parametrize(
    ("stored", "asked", "answered"),
    [
        ("ISO_IR 100", None, "ISO_IR 100"),
        ("ISO_IR 100", "ISO_IR 192", "ISO_IR 192"),
        ("ISO_IR 192", "ISO_IR 100", "ISO_IR 100"),
        ("ISO_IR 192", "ISO_IR 144", "ISO_IR 192"),
        ("ISO_IR 192", None, "ISO_IR 192"),
        ("ISO_IR 100", "ISO_IR 999", "ISO_IR 100"),
        ("ISO_IR 100", "NONSENSE", "ISO_IR 100"),
        ("GB18030", "ISO_IR 13", "GB18030"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_answer_prefers_the_character_set_of_the_request_then_the_stored_one(
    stored, asked, answered, archive, make_instance, ask
):
    archive.ingest(make_instance(1, PatientName="Müller^Jörg", SpecificCharacterSet=stored))
    (answer,) = ask(archive, PatientName="", **({"SpecificCharacterSet": asked} if asked else {}))
    assert answer.SpecificCharacterSet == answered
    assert answer.PatientName == "Müller^Jörg"


def test_ascii_needs_no_character_set(archive, make_instance, ask):
    archive.ingest(make_instance(1, SpecificCharacterSet="ISO_IR 100"))
    (answer,) = ask(archive, PatientName="")
    assert "SpecificCharacterSet" not in answer


@pytest.mark.filterwarnings("ignore")
def test_no_character_set_holds_both_names_but_utf_8(archive, make_instance, ask):
    archive.ingest(make_instance(1, PatientName="Иванов", SpecificCharacterSet="ISO_IR 144"))
    archive.ingest(make_instance(2, PatientName="Иванов", SpecificCharacterSet="ISO_IR 100", SeriesInstanceUID="1.8",
                                 OperatorsName="Müller", SeriesDescription="Schädel"))
    (answer,) = ask(archive, "SERIES", StudyInstanceUID=STUDY, SeriesInstanceUID="1.8", PatientName="",
                    OperatorsName="MULLER", SeriesDescription="")
    assert answer.SpecificCharacterSet == "ISO_IR 192"
    assert (answer.PatientName, answer.OperatorsName, answer.SeriesDescription) == ("Иванов", "Müller", "Schädel")


def test_several_names_in_one_element_match_one_by_one(archive, make_instance, ask):
    archive.ingest(make_instance(1, OperatorsName=["Lee^Ann", "Roe^Max"]))
    for value in ("lee^ann", "Roe*", "roe^max"):
        (answer,) = ask(archive, "SERIES", StudyInstanceUID=STUDY, OperatorsName=value)
        assert list(answer.OperatorsName) == ["Lee^Ann", "Roe^Max"]
    assert ask(archive, "SERIES", StudyInstanceUID=STUDY, OperatorsName="lee*max") == []
