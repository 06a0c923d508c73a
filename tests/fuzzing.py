"""Hostile conversations for `test_fuzz`: PDUs, command sets and data sets, made by the rules and broken at some."""

from __future__ import annotations

import contextlib
import socket
import struct
import zlib

from hypothesis import strategies as st
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from scp.contexts import (
    PATIENT_ROOT_FIND,
    SIMILARITY_FIND,
    STUDY_ROOT_FIND,
    STUDY_ROOT_GET,
    STUDY_ROOT_MOVE,
    VERIFICATION,
)

HANG_S = 120.0
UNDEFINED = 0xFFFFFFFF

# Bytes that break things more often than others.

LENGTHS = st.sampled_from([0, 1, 2, 3, 7, 8, 0x7F, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF])
LARGE_LENGTHS = [0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, UNDEFINED, 1 << 20, (1 << 24) + 1]
LONG_LENGTHS = st.one_of(LENGTHS, st.sampled_from(LARGE_LENGTHS))
ODD_UIDS = [b"../../x", b"..", b"/etc/passwd", b"", b"\0", b"1.2\0.3", b"1." * 5000, b".", b"~", b"a\\b", b" "]
ODD_UIDS += ["ünï.1".encode(), "１.２".encode(), b"\xff\xfe", b"1.2.3;DROP TABLE instance", b"%00", b"*", b"?"]
UIDS = st.one_of(st.sampled_from(ODD_UIDS), st.binary(max_size=80))
TITLES = st.one_of(st.just(b"FUZZ"), st.binary(max_size=20), st.sampled_from([b"", b"\0" * 16, b"a\\b", b"../../x"]))


@st.composite
def mangled(draw, whole):
    """`whole` with up to three faults: bytes overwritten, cut out, doubled, put in, or the end lost."""
    for _ in range(draw(st.integers(0, 3))):
        if not whole:
            break
        at = draw(st.integers(0, len(whole) - 1))
        size = draw(st.sampled_from([1, 2, 4, 8, 100]))
        fault = draw(st.sampled_from(["overwrite", "cut", "double", "insert", "end", "length"]))
        if fault == "overwrite":
            junk = draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\0" * 4, b"\xff" * 4])))
            whole = whole[:at] + junk + whole[at + len(junk) :]
        elif fault == "length":
            junk = struct.pack(draw(st.sampled_from(["<L", ">L"])), draw(LONG_LENGTHS))
            whole = whole[:at] + junk + whole[at + 4 :]
        elif fault == "cut":
            whole = whole[:at] + whole[at + size :]
        elif fault == "double":
            whole = whole[: at + size] + whole[at : at + size] * draw(st.integers(1, 50)) + whole[at + size :]
        elif fault == "insert":
            whole = whole[:at] + draw(st.binary(max_size=30)) + whole[at:]
        else:
            whole = whole[:at]
    return whole


# PDUs (PS3.8 9.3)

CONTEXTS = {
    1: (CTImageStorage, ExplicitVRLittleEndian),
    3: (CTImageStorage, ImplicitVRLittleEndian),
    5: (CTImageStorage, ExplicitVRBigEndian),
    7: (CTImageStorage, DeflatedExplicitVRLittleEndian),
    9: (VERIFICATION, ImplicitVRLittleEndian),
    11: (STUDY_ROOT_FIND, ExplicitVRLittleEndian),
    13: (PATIENT_ROOT_FIND, ImplicitVRLittleEndian),
    15: (STUDY_ROOT_FIND, DeflatedExplicitVRLittleEndian),
    17: (STUDY_ROOT_MOVE, ImplicitVRLittleEndian),
    19: (STUDY_ROOT_GET, ExplicitVRLittleEndian),
    21: (SIMILARITY_FIND, ExplicitVRLittleEndian),
    23: ("1.2.840.10008.1.20.1", ImplicitVRLittleEndian),  # Storage Commitment Push Model
}


def pdu(kind, body, length=None):
    return struct.pack(">BBL", kind, 0, len(body) if length is None else length) + body


def pdu_item(kind, body, length=None):
    return struct.pack(">BBH", kind, 0, len(body) & 0xFFFF if length is None else length) + body


def context_item(number, abstract, transfer):
    items = pdu_item(0x30, abstract.encode()) + pdu_item(0x40, transfer.encode())
    return pdu_item(0x20, struct.pack(">BBBB", number, 0, 0, 0) + items)


def associate_rq(calling=b"FUZZ", called=b"THARSIS", more=b""):
    user = pdu_item(0x51, struct.pack(">L", 16384)) + pdu_item(0x52, b"1.2.3") + more
    contexts = b"".join(context_item(number, *kind) for number, kind in CONTEXTS.items())
    fixed = struct.pack(">HH", 1, 0) + called.ljust(16)[:16] + calling.ljust(16)[:16] + bytes(32)
    return pdu(1, fixed + pdu_item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + pdu_item(0x50, user))


def data_tf(*values):
    """P-DATA-TF of (context, message control header, fragment)."""
    return pdu(
        4, b"".join(struct.pack(">LBB", len(part) + 2, cx & 255, header) + part for cx, header, part in values)
    )


USER_ITEMS = [
    pdu_item(0x53, struct.pack(">HH", 0, 0)),
    pdu_item(0x54, struct.pack(">H", 25) + CTImageStorage.encode() + b"\1\1"),
    pdu_item(0x56, struct.pack(">H", 27) + STUDY_ROOT_FIND.encode() + b"\1\1\1\1"),
    pdu_item(0x57, struct.pack(">H", 25) + CTImageStorage.encode() + struct.pack(">HH", 0, 0)),
    pdu_item(0x58, b"\2\1" + struct.pack(">H", 4) + b"user" + struct.pack(">H", 4) + b"pass"),
    pdu_item(0x55, b"NAME"),
    pdu_item(0x5F, b"?"),
]


@st.composite
def requests(draw):
    """An A-ASSOCIATE-RQ, whole or broken, with odd titles and odd user items."""
    more = b"".join(draw(st.lists(st.sampled_from(USER_ITEMS), max_size=4)))
    if draw(st.integers(0, 9)) == 0:
        more *= draw(st.sampled_from([50, 2000]))
    return draw(mangled(associate_rq(draw(TITLES), draw(st.sampled_from([b"THARSIS", b"", b"\0"])), more[:60000])))


@st.composite
def streams(draw):
    """PDUs in any order, before, within and after an association."""
    kinds = {
        "rq": requests(),
        "data": st.builds(
            lambda *value: data_tf(value), st.integers(0, 255), st.integers(0, 255), st.binary(max_size=64)
        ),
        "release": st.just(pdu(5, bytes(4))),
        "released": st.just(pdu(6, bytes(4))),
        "abort": st.just(pdu(7, bytes(4))),
        "accept": st.just(pdu(2, associate_rq()[6:])),
        "reject": st.just(pdu(3, b"\0\1\1\1")),
        "odd": st.builds(pdu, st.integers(0, 255), st.binary(max_size=64), LONG_LENGTHS),
        "junk": st.binary(max_size=200),
    }
    chosen = draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=5))
    return draw(mangled(b"".join(draw(kinds[kind]) for kind in chosen)))


# Command sets (PS3.7 E.1)

FIELDS = [0x0001, 0x8001, 0x0010, 0x0020, 0x8020, 0x0021, 0x8021, 0x0030, 0x8030, 0x0FFF, 0x0100, 0x8100, 0x0110,
          0x0120, 0x0130, 0x8130, 0x0140, 0x0150, 0x0000, 0x7777, 0xFFFF]  # fmt: skip
NO_DATA_SET, DATA_SET = 0x0101, 0x0001
CLASSES = [str(abstract) for abstract, _ in CONTEXTS.values()]


def us(number):
    return struct.pack("<H", number)


@st.composite
def commands(draw, field=None, sop_class=None, data_set=None):
    """A command set: that of a request, with elements left out, doubled, mistyped, out of order or unknown."""
    uid = draw(st.one_of(st.just(b"1.2.3.4"), UIDS))
    number = us(draw(st.sampled_from([0, 1, 7, 0xFFFF])))
    field = draw(st.sampled_from(FIELDS)) if field is None else field
    data_set = draw(st.sampled_from([NO_DATA_SET, DATA_SET, 0xFFFF])) if data_set is None else data_set
    elements = {
        0x0002: (sop_class or draw(st.sampled_from(CLASSES))).encode(),
        0x0003: draw(st.sampled_from(CLASSES)).encode(),
        0x0100: us(field),
        0x0110: number,
        0x0120: number,
        0x0600: draw(TITLES),
        0x0700: us(draw(st.sampled_from([0, 1, 2, 3, 0xFFFF]))),
        0x0800: us(data_set),
        0x0900: us(draw(st.sampled_from([0, 0xFF00, 0xA700]))),
        0x1000: uid,
        0x1001: uid,
        0x1002: us(1),
        0x1005: b"\x08\0\x18\0",
        0x1008: us(1),
    }
    wanted = {0x0002, 0x0100, 0x0110, 0x0700, 0x0800, 0x1000}
    if field & 0x8000 or field == 0x0FFF:
        wanted |= {0x0120, 0x0900}
    if field == 0x0021:
        wanted.add(0x0600)
    if field >= 0x0100:
        wanted |= {0x0003, 0x1001, 0x1002, 0x1005, 0x1008}
    for tag in draw(st.lists(st.sampled_from(sorted(elements)), max_size=2)):
        wanted ^= {tag}
    order = sorted(wanted)
    if draw(st.integers(0, 4)) == 0:
        order = draw(st.permutations(order)) + draw(st.lists(st.sampled_from(order or [0x0100]), max_size=2))
    if order and draw(st.integers(0, 3)) == 0:
        elements[draw(st.sampled_from(order))] = draw(st.binary(max_size=20))
    encoded = b"".join(struct.pack("<HHL", 0, tag, len(elements[tag])) + elements[tag] for tag in order)
    whole = struct.pack("<HHLL", 0, 0, 4, len(encoded)) + encoded
    return draw(mangled(whole)) if draw(st.booleans()) else whole


@st.composite
def messages(draw):
    """P-DATA-TF PDUs of one message whose fragments, headers or contexts may not belong together."""
    context = draw(st.one_of(st.sampled_from(sorted(CONTEXTS)), st.integers(0, 255)))
    command = draw(commands(sop_class=str(CONTEXTS.get(context, CONTEXTS[1])[0])))
    data = draw(st.one_of(st.just(b""), data_sets(CONTEXTS.get(context, CONTEXTS[1])[1]), st.binary(max_size=40)))
    cut = draw(st.integers(0, len(command)))
    parts = [(context, 1, command[:cut]), (context, 3, command[cut:]), (context, 0, data[:9]), (context, 2, data[9:])]
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(parts) - 1))
        fault = draw(st.sampled_from(["lose", "double", "header", "context", "swap"]))
        other, header, part = parts[at]
        if fault == "lose":
            parts[at] = (other, header, b"")
        elif fault == "double":
            parts.insert(at, parts[at])
        elif fault == "header":
            parts[at] = (other, draw(st.integers(0, 255)), part)
        elif fault == "context":
            parts[at] = (draw(st.integers(0, 255)), header, part)
        else:
            parts.insert(0, parts.pop(at))
    if draw(st.booleans()):
        return data_tf(*parts)
    return b"".join(data_tf(part) for part in parts)


# Data sets (PS3.5 7.1)

IDENTITY = {0x00080016: CTImageStorage.encode(), 0x00080018: b"1.2.3.4", 0x0020000D: b"1.2.7", 0x0020000E: b"1.2.8"}
CHARSETS = [b"ISO_IR 100", b"ISO 2022 IR 87\\ISO 2022 IR 149", b"GB18030", b"\\" * 60, b"ISO_IR 999", b"\x1b$B"]
TEXTS = [b"", b"A^B", b"\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", b"=" * 60, b"^" * 9000, b"\\" * 3000, b"\xff" * 99]
TEXTS += [b"\x1b" * 99, b"%_[*?]", b"20240101-", b"-", b"1e999", b"NaN", b"9" * 5000, b"\0" * 64, "山田^太郎".encode()]
VRS = b"AE AS AT CS DA DS DT FD FL IS LO LT OB OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV ZZ".split()
VRS += [b"\0\0", b"  "]
LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV"}
TAGS = """
    00080005 00080008 00080016 00080018 00080020 00080030 00080050 00080052 00080060 00080061 00080201 00081032
    00081115 00081140 00100010 00100020 00100030 0020000D 0020000E 00200013 00201208 00280002 00280004 00280008
    00280010 00280011 00280100 00280103 00400275 00401101 52009229 52009230 7FE00010 7FE00008 00020010 00000000
    00000800 00090010 00091001 FFFEE000 FFFEE00D FFFEE0DD FFFCFFFC FFFFFFFF 77770010 77771001
"""
TAGS = [int(tag, 16) for tag in TAGS.split()]


def element(tag, vr, value, syntax, length=None):
    mark = ">" if syntax == ExplicitVRBigEndian else "<"
    length = len(value) if length is None else length
    start = struct.pack(mark + "HH", tag >> 16, tag & 0xFFFF)
    if syntax == ImplicitVRLittleEndian or tag >> 16 == 0xFFFE or not vr:
        return start + struct.pack(mark + "L", length & UNDEFINED) + value
    if vr in LONG:
        return start + vr + bytes(2) + struct.pack(mark + "L", length & UNDEFINED) + value
    return start + vr + struct.pack(mark + "H", length & 0xFFFF) + value


@st.composite
def elements(draw, syntax, depth):
    tag = draw(st.sampled_from(TAGS))
    if depth and draw(st.integers(0, 2)) == 0:
        return draw(
            sequences(
                draw(st.sampled_from([0x00081115, 0x00081140, 0x00400275, 0x00091001, 0x52009230])), syntax, depth - 1
            )
        )
    values = {
        0x00080005: CHARSETS,
        0x00080052: [b"STUDY ", b"IMAGE ", b"SERIES", b"PATIENT", b"study", b"", b"X" * 300],
    }
    value = draw(st.one_of(st.sampled_from(values.get(tag, TEXTS)), st.binary(max_size=24)))
    length = draw(st.one_of(st.none(), st.none(), st.none(), LONG_LENGTHS))
    return element(tag, draw(st.sampled_from(VRS)), value, syntax, length)


@st.composite
def sequences(draw, tag, syntax, depth):
    """A sequence of explicit or undefined length, its delimiters at times lost, doubled or confused."""
    content = b""
    for _ in range(draw(st.integers(0, 3))):
        inner = b"".join(draw(st.lists(elements(syntax, depth), max_size=3)))
        ends = draw(
            st.sampled_from([b"", element(0xFFFEE00D, b"", b"", syntax), element(0xFFFEE0DD, b"", b"", syntax)])
        )
        length = UNDEFINED if ends and draw(st.booleans()) else None
        content += element(0xFFFEE000, b"", inner, syntax, length) + ends
    if draw(st.booleans()):
        return element(tag, b"SQ", content, syntax)
    return element(tag, b"SQ", content, syntax, UNDEFINED) + draw(
        st.sampled_from([element(0xFFFEE0DD, b"", b"", syntax)] * 4 + [b"", element(0xFFFEE00D, b"", b"", syntax)])
    )


def nested(depth, syntax, kind):
    """`depth` sequences inside each other: of undefined length, of explicit length, or never ended."""
    begin = element(0x00081115, b"SQ", b"", syntax, UNDEFINED) + element(0xFFFEE000, b"", b"", syntax, UNDEFINED)
    end = element(0xFFFEE00D, b"", b"", syntax) + element(0xFFFEE0DD, b"", b"", syntax)
    if kind == "undefined":
        return begin * depth + end * depth
    if kind == "endless":
        return begin * depth
    content = b""
    for _ in range(min(depth, 1000)):  # each level copies what is inside
        content = element(0x00081115, b"SQ", element(0xFFFEE000, b"", content, syntax), syntax)
    return content


@st.composite
def data_sets(draw, syntax):
    """A data set that may be stored, or an Identifier: its own UIDs, elements of all kinds, then faults."""
    plain = ExplicitVRLittleEndian if syntax == DeflatedExplicitVRLittleEndian else syntax
    kind = draw(st.sampled_from(["elements"] * 6 + ["nested", "many", "zeros", "pixels", "bomb"]))
    identity = {tag: draw(st.one_of(st.just(uid), st.just(uid), st.just(uid), UIDS)) for tag, uid in IDENTITY.items()}
    parts = [(tag, element(tag, b"UI", value, plain)) for tag, value in identity.items()]
    if kind == "nested":
        depth = draw(st.sampled_from([2, 16, 17, 64, 65, 300, 1000, 100_000]))
        parts.append((0x00081115, nested(depth, plain, draw(st.sampled_from(["undefined", "explicit", "endless"])))))
    elif kind == "many":
        parts.append((0x00090000, element(0x00091001, b"LO", b"", plain) * draw(st.sampled_from([100, 20_000]))))
    elif kind == "zeros":
        parts.append(
            (draw(st.sampled_from([0, 0x00100000, 0xFFFFFFFF])), bytes(draw(st.sampled_from([1, 7, 8, 64_000]))))
        )
    elif kind == "pixels":
        fragments = b"".join(
            element(0xFFFEE000, b"", draw(st.binary(max_size=9)), plain) for _ in range(draw(st.integers(0, 4)))
        )
        fragments += draw(st.sampled_from([b"", element(0xFFFEE0DD, b"", b"", plain)]))
        parts += [(0x00280010, element(0x00280010, b"US", us(draw(st.sampled_from([0, 1, 0xFFFF]))), plain)),
                  (0x00280011, element(0x00280011, b"US", us(draw(st.sampled_from([0, 1, 0xFFFF]))), plain)),
                  (0x7FE00010, element(0x7FE00010, b"OB", fragments, plain, UNDEFINED))]  # fmt: skip
    elif kind == "bomb":
        parts.append(
            (
                0x7FE00010,
                element(
                    0x7FE00010,
                    b"OW",
                    bytes(draw(st.sampled_from([100, 40_000_000 if syntax != plain else 1000]))),
                    plain,
                ),
            )
        )
    parts += [(draw(st.sampled_from(TAGS)), each) for each in draw(st.lists(elements(plain, 3), max_size=6))]
    if draw(st.integers(0, 3)):
        parts.sort(key=lambda part: part[0])
    whole = b"".join(encoded for _, encoded in parts)
    if len(whole) < 10_000 and draw(st.integers(0, 2)) == 0:
        whole = draw(mangled(whole))
    if syntax == DeflatedExplicitVRLittleEndian:
        squeezer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        whole = squeezer.compress(whole) + squeezer.flush()
        whole = draw(mangled(whole)) if draw(st.integers(0, 4)) == 0 else whole
    return whole


# Conversations


def converse(port, stream, *more):
    """Send `stream`, then each of `more` when something has come back; read until the node closes.

    A node that does neither within `HANG_S` hangs.
    """
    with (
        socket.create_connection(("127.0.0.1", port), timeout=HANG_S) as connection,
        contextlib.suppress(ConnectionError),
    ):
        connection.sendall(stream)
        for each in more:
            if not connection.recv(1 << 16):
                return
            connection.sendall(each)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass


def request(context, field, data, uid=b"1.2.3.4", **odd):
    """The PDUs of one request whose command is right and whose data set is `data`."""
    sop_class = str(CONTEXTS[context][0]).encode()
    elements = {0x0002: sop_class, 0x0100: us(field), 0x0110: us(1), 0x0700: us(0), 0x0800: us(DATA_SET)}
    if field == 0x0001:
        elements[0x1000] = uid
    if field == 0x0021:
        elements[0x0600] = odd.get("destination", b"NOBODY")
    encoded = b"".join(struct.pack("<HHL", 0, tag, len(value)) + value for tag, value in sorted(elements.items()))
    command = struct.pack("<HHLL", 0, 0, 4, len(encoded)) + encoded
    parts = [data[at : at + 16000] for at in range(0, len(data), 16000)] or [b""]
    fragments = [data_tf((context, 2 if at == len(parts) - 1 else 0, part)) for at, part in enumerate(parts)]
    return data_tf((context, 3, command)) + b"".join(fragments)


STORE, FIND, GET, MOVE = 0x0001, 0x0020, 0x0010, 0x0021
RELEASE = pdu(5, bytes(4))
