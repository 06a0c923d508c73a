"""The node's identity: UIDs that fit, versions that fit, derived UIDs that come out the same again."""

from __future__ import annotations

import re

from pydicom.uid import UID

from config import identity


def test_new_uids_are_valid_under_the_root_and_differ():
    uids = {identity.new_uid() for _ in range(1000)}
    assert len(uids) == 1000
    assert all(UID(uid).is_valid and uid.startswith(identity.UID_ROOT + ".2.") for uid in uids)


def test_the_longest_uids_fit(monkeypatch):
    monkeypatch.setattr(identity.secrets, "randbelow", lambda limit: limit - 1)
    assert len(identity.new_uid()) == 64
    monkeypatch.setattr(identity.secrets, "randbelow", lambda _limit: 0)
    assert UID(identity.new_uid()).is_valid


def test_derived_uids_depend_on_every_part_and_their_order():
    uid = identity.derived_uid("1.2.3", "fdk")
    assert identity.derived_uid("1.2.3", "fdk") == uid
    others = {("1.2.3",), ("fdk", "1.2.3"), ("1.2.3", "fdk2"), ("1.2.3fdk",), ("1.2.3", "f", "dk"), ("1.2", ".3fdk")}
    made = {identity.derived_uid(*parts) for parts in others}
    assert len(made) == len(others)
    assert uid not in made
    assert all(UID(each).is_valid for each in made)


def test_new_and_derived_uids_never_meet():
    assert identity.new_uid().split(identity.UID_ROOT)[1].startswith(".2.")
    assert identity.derived_uid("x").split(identity.UID_ROOT)[1].startswith(".3.")
    assert UID(identity.IMPLEMENTATION_CLASS_UID).is_valid


def test_implementation_version_name_fits(monkeypatch):
    for version in ("0.1.0", "2027.12.31.dev123456+local"):
        monkeypatch.setattr(identity, "version", lambda told=version: told)
        assert re.fullmatch(r"[A-Z0-9_a-z+]{1,16}", identity.implementation_version_name())
