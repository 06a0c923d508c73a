"""The one table from exception to Status."""

from __future__ import annotations

import errno

import pytest

from index import errors as index_errors
from scp import errors as scp_errors
from scp.status import Status, is_expected, status_of

PRIVATE_K = 0x00731006


@pytest.mark.parametrize(
    ("error", "code", "offending"),
    [
        (index_errors.InvalidInstance("StudyInstanceUID is missing", element="StudyInstanceUID"), 0xA900, 0x0020000D),
        (index_errors.InvalidInstance("not a DICOM file"), 0xC000, None),
        (index_errors.InstanceConflict("other content", element="SOPInstanceUID"), 0xB006, 0x00080018),
        (index_errors.PatientMismatch("another patient", element="PatientID"), 0xA900, 0x00100020),
        (index_errors.OutOfSpace("3 MiB free"), 0xA700, None),
        (OSError(errno.ENOSPC, "No space left on device"), 0xA700, None),
        (index_errors.InvalidIdentifier("level", element="QueryRetrieveLevel"), 0xA900, 0x00080052),
        (index_errors.InvalidIdentifier("k", element="MaximumResults"), 0xA900, PRIVATE_K),
        (index_errors.UnknownQuery("no such"), 0xC001, None),
        (index_errors.NotEmbedded("not yet"), 0xC002, None),
        (index_errors.UnknownModel("no model"), 0xC003, None),
        (index_errors.WrongDimension("512 values"), 0xC004, None),
        (scp_errors.NotAuthorized("no right"), 0x0124, None),
        (scp_errors.NotOffered("not here"), 0x0122, None),
        (scp_errors.UnrecognizedOperation("not that"), 0x0211, None),
        (scp_errors.InvalidArgument("what", element="TransactionUID"), 0x0115, 0x00081195),
        (scp_errors.UnknownAction("do what", element="ActionTypeID"), 0x0123, 0x00001008),
        (scp_errors.ResourceLimitation("no room"), 0x0213, None),
        (scp_errors.UnknownDestination("who"), 0xA801, None),
        (scp_errors.PeerUnreachable("closed"), 0xA702, None),
        (scp_errors.AssociationLost("gone"), 0xA702, None),
        (ZeroDivisionError("a fault of ours"), 0x0110, None),
    ],
)
def test_status_of_an_exception(error, code, offending):
    status = status_of(error)
    assert status.code == code
    assert status.comment
    assert status.offending == (() if offending is None else (offending,))


def _leaves(kind):
    below = kind.__subclasses__()
    return [kind] if not below else [leaf for child in below for leaf in _leaves(child)]


@pytest.mark.parametrize("kind", _leaves(index_errors.ArchiveError) + _leaves(scp_errors.ScpError))
def test_the_table_knows_every_exception_of_this_node(kind):
    if kind.__name__ != "RequestFailed":
        assert is_expected(kind("a sentence"))


def test_a_comment_fits_its_element():
    status = Status(0xA900, "Müller\\Straße\n" + "x" * 100)
    assert len(status.comment) <= 64
    assert status.comment.isascii()
    assert "\\" not in status.comment
    assert status.comment.isprintable()


@pytest.mark.parametrize(
    ("code", "kind"),
    [(0x0000, "success"), (0xFF00, "pending"), (0xFF01, "pending"), (0xB000, "warning"), (0xB006, "warning"),
     (0x0107, "warning"), (0xFE00, "cancel"), (0xA900, "failure"), (0xC123, "failure"), (0x0110, "failure")],
)  # fmt: skip
def test_kind_of_a_status(code, kind):
    status = Status(code)
    kinds = ["success", "pending", "warning", "cancel", "failure"]
    assert [name for name in kinds if getattr(status, f"is_{name}")] == [kind]
