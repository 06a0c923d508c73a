"""Routing: what fits a rule reaches its destination once, whatever the destination does; nothing is lost."""

from __future__ import annotations

import threading
import time

import pytest
from pydicom.uid import JPEG2000Lossless, MRImageStorage

from commands.tidying import before_the_start
from index.deidentification.deidentifier import Deidentifier
from index.keys import Level

RULE = {"name": "all", "to": ["PACS"], "commit": "never"}
UID = "1.2.826.0.1.3680043.9.7133.9.{}".format


def test_a_series_is_sent_once_and_later_only_what_is_new(routed, start_pacs, make_file):
    pacs = start_pacs().open()
    node = routed([RULE], [pacs.entity])
    node.store(make_file(1), make_file(2))
    node.work()
    assert pacs.received == {UID(1): 1, UID(2): 1}
    assert [job.state for job in node.jobs()] == ["done"]
    node.store(make_file(3))
    node.work()
    assert pacs.received == {UID(1): 1, UID(2): 1, UID(3): 1}
    node.archive.ingest(make_file(2, ImageComments="corrected"), source_aet="SCANNER", overwrite="always")
    node.stabilise()
    node.work()
    assert pacs.received == {UID(1): 1, UID(2): 2, UID(3): 1}


def test_a_peer_that_is_off_is_tried_once_for_all_its_series_and_gets_everything_when_it_is_back(
    routed, start_pacs, make_file
):
    pacs = start_pacs()
    node = routed([RULE], [pacs.entity])
    for number in range(1, 6):
        node.store(make_file(number, SeriesInstanceUID=f"1.2.3.{number}"))
    node.work()
    told = node.archive.database.execute("SELECT failures, error FROM destination_trouble").fetchall()
    assert [failures for failures, _ in told] == [1]
    assert "cannot reach PACS" in told[0][1]
    assert [job.state for job in node.jobs()] == ["queued"] * 5
    for _ in range(6):  # more often than any job may fail
        node.hasten()
        node.work()
    assert {job.state for job in node.jobs()} == {"queued"}
    node.restart()  # as the router does after a day
    pacs.open()
    node.hasten()
    node.work()
    assert pacs.received == {UID(number): 1 for number in range(1, 6)}
    assert [job.state for job in node.jobs()] == ["done"] * 5
    assert node.archive.database.execute("SELECT count(*) FROM destination_trouble").fetchone() == (0,)


@pytest.mark.slow
def test_a_day_without_the_peer_loses_nothing_and_costs_few_tries(routed, start_pacs, make_file):
    """Hour by hour of the lanes' clock a series comes; the peer is back after a day, and the router has died twice."""
    pacs = start_pacs()
    node = routed([RULE], [pacs.entity])
    began = time.time()
    tries = 0
    for hour in range(24):
        node.store(make_file(hour + 1, SeriesInstanceUID=f"1.2.3.{hour}"))
        for minute in range(0, 60, 10):
            node.now = began + 3600.0 * hour + 60.0 * minute
            node.work()
        if hour in (7, 15):
            node.restart()
    (tries,) = node.archive.database.execute("SELECT failures FROM destination_trouble").fetchone()
    assert 24 <= tries <= 36
    pacs.open()
    node.now = began + 25 * 3600.0
    node.work()
    assert pacs.received == {UID(number): 1 for number in range(1, 25)}
    assert {job.state for job in node.jobs()} == {"done"}


def test_what_waits_too_long_is_failed_and_can_be_retried(routed, start_pacs, make_file):
    pacs = start_pacs()
    node = routed([{**RULE, "retry_hours": 24}], [pacs.entity])
    for number in (1, 2):
        node.store(make_file(number, SeriesInstanceUID=f"1.2.3.{number}"))
    node.work()
    node.hasten()
    node.now = time.time() + 25 * 3600
    node.work()
    failed = node.jobs()
    assert [job.state for job in failed] == ["failed"] * 2
    assert all(job.error.endswith("given up after 24 h") for job in failed)
    pacs.open()
    node.now = None
    node.hasten()
    for job in failed:
        node.archive.jobs.retry(job.id)
    node.work()
    assert pacs.received == {UID(1): 1, UID(2): 1}


def test_what_was_given_up_has_all_of_its_time_when_it_is_retried(routed, start_pacs, make_file):
    """Also where the retried job waits for the destination most of that time."""
    pacs = start_pacs().open()
    node = routed([{**RULE, "retry_hours": 24}], [pacs.entity])
    pacs.answer = lambda _event: 0x0110
    node.store(make_file(1))
    for hours in (0, 23, 2):
        node.let_pass(hours)
        node.work()
    assert node.states() == {"1": "refused"}
    (failed,) = node.jobs()
    assert "given up after 24 h" in failed.error
    node.archive.jobs.retry(failed.id)
    for hours in (23, 2, 21):
        node.let_pass(hours)
        node.work()
        assert node.states() == {"1": "failing"}
        assert node.jobs()[-1].state == "queued"
    node.let_pass(2)
    node.work()
    assert node.states() == {"1": "refused"}
    assert node.jobs()[-1].state == "failed"


def test_a_retried_job_has_all_of_its_time_for_what_was_not_refused(routed, start_pacs, make_file):
    pacs = start_pacs().open()
    node = routed([{**RULE, "retry_hours": 24}], [pacs.entity])
    pacs.answer = lambda _event: 0x0110
    node.store(make_file(1))
    node.work()
    (job,) = node.jobs()
    node.archive.jobs.cancel(job.id)
    node.let_pass(25)
    node.archive.jobs.retry(job.id)
    node.work()
    assert node.states() == {"1": "failing"}
    assert node.jobs()[-1].state == "queued"


def test_a_peer_that_rejects_the_association_is_let_alone_and_says_why(routed, start_pacs, make_file):
    pacs = start_pacs()
    pacs.rejects = True
    pacs.open()
    node = routed([RULE], [pacs.entity])
    node.store(make_file(1))
    node.work()
    (job,) = node.jobs()
    assert job.state == "queued"
    assert "rejected the association: called ae title" in job.error
    pacs.close()
    pacs.rejects = False
    pacs.open()
    node.hasten()
    node.work()
    assert pacs.received == {UID(1): 1}


@pytest.mark.parametrize(("status", "words"), [(0xA900, "A900"), (0xC123, "C123"), (0x0122, "0122")])
def test_what_is_refused_for_good_keeps_back_nothing_else(routed, start_pacs, make_file, status, words):
    pacs = start_pacs().open()
    pacs.answer = lambda event: status if event.request.AffectedSOPInstanceUID == UID(2) else 0
    node = routed([RULE], [pacs.entity])
    node.store(*(make_file(number) for number in (1, 2, 3)))
    node.work()
    assert pacs.received == {UID(1): 1, UID(3): 1}
    (job,) = node.jobs()
    assert job.state == "failed"
    assert f"1 of the instances cannot be sent to PACS, all others were: answered {words}" in job.error
    assert node.states() == {"1": "sent", "2": "refused", "3": "sent"}
    pacs.answer = lambda _event: 0xB000  # a warning: it has it
    node.archive.jobs.retry(job.id)
    node.work()
    assert pacs.received == {UID(1): 1, UID(2): 1, UID(3): 1}
    assert [job.state for job in node.jobs()] == ["cancelled", "done"]


def test_a_sop_class_that_the_peer_does_not_take_is_refused_in_one_sentence(routed, start_pacs, make_file):
    pacs = start_pacs().open()
    node = routed([RULE], [pacs.entity])
    node.store(make_file(1, SOPClassUID=MRImageStorage))
    node.work()
    (job,) = node.jobs()
    assert job.state == "failed"
    assert "accepted none of the presentation contexts" in job.error
    assert pacs.associations <= 1


def test_a_full_peer_is_let_alone_until_it_has_room(routed, start_pacs, make_file):
    pacs = start_pacs().open()
    pacs.answer = lambda _event: 0xA700 if len(pacs.received) >= 2 else 0
    node = routed([RULE], [pacs.entity])
    node.store(*(make_file(number) for number in (1, 2, 3, 4)))
    node.work()
    assert len(pacs.received) == 2
    (job,) = node.jobs()
    assert job.state == "queued"
    assert "A700" in job.error
    pacs.answer = lambda _event: 0
    node.hasten()
    node.work()
    assert pacs.received == {UID(number): 1 for number in (1, 2, 3, 4)}


def test_a_peer_that_aborts_at_one_object_gets_all_others_and_other_series(routed, start_pacs, make_file):
    pacs = start_pacs().open()

    def answer(event):
        if event.request.AffectedSOPInstanceUID == UID(2):
            event.assoc.abort()
        return 0

    pacs.answer = answer
    node = routed([RULE], [pacs.entity])
    node.store(*(make_file(number) for number in (1, 2, 3)))
    node.store(make_file(4, SeriesInstanceUID="1.2.3.4"))
    node.work()
    pacs.received.pop(UID(2), None)
    assert pacs.received == {UID(1): 1, UID(3): 1, UID(4): 1}
    first, second = node.jobs()
    assert (first.state, second.state) == ("queued", "done")
    assert "1 of 3 instances could not be sent to PACS yet" in first.error
    node.now = time.time() + 73 * 3600
    node.hasten()
    node.work()
    assert node.states()["2"] == "refused"
    assert node.jobs()[0].state == "failed"
    assert pacs.received[UID(1)] == 1


def test_a_peer_that_aborts_always_is_not_hammered(routed, start_pacs, make_file):
    pacs = start_pacs().open()
    pacs.answer = lambda event: event.assoc.abort() or 0xC000
    node = routed([RULE], [pacs.entity])
    for series in range(3):
        node.store(*(make_file(10 * series + number, SeriesInstanceUID=f"1.2.3.{series}") for number in range(1, 8)))
    node.work()
    assert pacs.associations == 3
    assert [job.state for job in node.jobs()] == ["queued"] * 3
    pacs.answer = lambda _event: 0
    for _ in range(2):
        node.hasten()
        node.work()
    assert len(pacs.received) == 21


def test_a_slow_peer_keeps_no_other_one_waiting(routed, start_pacs, make_file, wait_until):
    slow, quick = start_pacs("SLOW"), start_pacs("QUICK")
    release = threading.Event()
    slow.answer = lambda _event: 0 if release.wait(60) else 0xC000
    rule = {"name": "both", "to": ["SLOW", "QUICK"], "commit": "never"}
    node = routed([rule], [slow.open().entity, quick.open().entity], scp={"dimse_timeout_s": 60.0})
    node.store(*(make_file(number) for number in (1, 2, 3)))
    running = threading.Thread(target=node.router.run)
    running.start()
    wait_until(lambda: len(quick.received) == 3)
    assert not slow.received
    release.set()
    wait_until(lambda: {job.state for job in node.jobs()} == {"done"})
    node.router.stop()
    running.join()
    assert slow.received == quick.received == {UID(number): 1 for number in (1, 2, 3)}


def test_a_peer_that_falls_silent_is_left_and_asked_again(routed, start_pacs, make_file):
    pacs = start_pacs().open()
    ended = threading.Event()
    pacs.answer = lambda _event: 0xC000 if ended.wait(60) else 0
    node = routed([RULE], [pacs.entity], scp={"dimse_timeout_s": 0.3})
    patient = node.settings.model_copy(update={"scp": node.settings.scp.model_copy(update={"dimse_timeout_s": 60.0})})
    node.store(make_file(1))
    node.work()
    (job,) = node.jobs()
    assert job.state == "queued"
    assert "silent beyond the DIMSE timeout" in job.error
    ended.set()
    pacs.answer = lambda _event: 0
    node.settings = patient  # now a slow machine is no silence
    node.restart()
    node.hasten()
    node.work()
    assert pacs.received == {UID(1): 1}


def test_nothing_goes_back_to_who_sent_it(routed, start_pacs, make_file):
    pacs = start_pacs().open()
    node = routed([RULE], [pacs.entity])
    node.store(make_file(1, SeriesInstanceUID="1.2.3"), source_aet="PACS")
    assert node.jobs() == []
    node.store(make_file(2), source_aet="PACS")
    node.store(make_file(3), source_aet="SCANNER")  # the same series, half of it from there
    node.work()
    assert pacs.received == {UID(3): 1}


def test_a_rule_goes_by_who_sent_an_instance_first(routed, start_pacs, make_file):
    """A duplicate is no news: neither does it make a rule fit, nor does it take away what one has still to send."""
    pacs = start_pacs()
    node = routed([{**RULE, "from": ["CT1"]}], [pacs.entity])
    node.store(make_file(1), source_aet="CT1")
    node.store(make_file(2, SeriesInstanceUID="1.2.3"), source_aet="CT2")
    node.work()
    for number, more, title in ((1, {}, "PACS"), (1, {}, "CT2"), (2, {"SeriesInstanceUID": "1.2.3"}, "CT1")):
        node.store(make_file(number, **more), source_aet=title)
    pacs.open()
    node.hasten()
    node.work()
    assert pacs.received == {UID(1): 1}


def test_conversion_damage_and_deletion(routed, start_pacs, make_file, shared_data):
    pacs = start_pacs().open()
    node = routed([RULE], [pacs.entity])
    node.store(make_file(1), make_file(2), make_file(3))
    with node.archive.transaction() as database:
        database.execute("UPDATE instance SET damage = 'altered' WHERE sop_instance_uid = ?", (UID(2),))
    node.archive.delete(Level.IMAGE, UID(3))
    node.work()
    assert pacs.received == {UID(1): 1}
    assert "the stored file is altered" in node.jobs()[0].error
    node.archive.delete(Level.SERIES, "1.2.826.0.1.3680043.9.7133.2")
    assert {job.state for job in node.jobs()} == {"cancelled"}


def test_a_compressed_object_is_converted_for_a_peer_that_takes_only_plain_ones(routed, start_pacs, make_file, dcmtk,
                                                                               tmp_path):
    pacs = start_pacs().open()
    node = routed([RULE], [pacs.entity])
    compressed = tmp_path / "compressed.dcm"
    dcmtk("dcmcrle", make_file(1), compressed)
    node.store(compressed)
    node.work()
    assert pacs.received == {UID(1): 1}
    assert JPEG2000Lossless not in pacs.contexts[0][1]


def test_after_so_many_instances_a_new_association_is_opened(routed, start_pacs, make_file):
    pacs = start_pacs().open()
    node = routed([{**RULE, "max_instances": 2}], [pacs.entity])
    node.store(*(make_file(number) for number in range(1, 6)))
    node.work()
    assert (len(pacs.received), pacs.associations) == (5, 3)


def test_instances_that_come_while_a_series_is_being_sent_follow(routed, start_pacs, make_file):
    pacs = start_pacs().open()
    node = routed([RULE], [pacs.entity])

    def answer(event):
        if event.request.AffectedSOPInstanceUID == UID(1):
            node.store(make_file(2))
        return 0

    pacs.answer = answer
    node.store(make_file(1))
    node.work()
    assert pacs.received == {UID(1): 1, UID(2): 1}
    assert [job.state for job in node.jobs()] == ["done", "done"]


def test_a_rule_or_destination_that_is_gone_is_told(routed, start_pacs, make_file):
    pacs = start_pacs().open()
    node = routed([RULE], [pacs.entity])
    node.store(make_file(1))
    (job,) = node.jobs()
    others = routed([{**RULE, "name": "other"}], [pacs.entity])
    node.settings = others.settings
    node.restart()
    node.work()
    assert node.jobs()[0].error == "there is no rule 'all' to PACS in the settings any more"
    node.archive.jobs.retry(job.id)
    node.settings = routed([], []).settings
    node.restart()
    node.router.stop()
    node.router.run()
    assert node.jobs()[1].error == "[[application_entities]] has no PACS with host and port any more"


def test_what_was_under_way_to_a_destination_that_is_gone_does_not_keep_its_study_for_ever(
    routed, start_pacs, make_file
):
    node = routed([RULE], [start_pacs().entity])
    node.store(make_file(1))
    assert node.archive.jobs.claim("router/PACS", claim_s=3600.0, max_attempts=5, kinds=("route",)) is not None
    node.settings = routed([], []).settings
    node.restart()
    node.router.stop()
    node.router.run()
    (job,) = node.jobs()
    assert (job.state, "has no PACS" in job.error) == ("failed", True)


def test_without_rules_a_router_ends_what_earlier_ones_have_queued(routed, start_pacs, make_file):
    node = routed([RULE], [start_pacs().entity])
    node.store(make_file(1))
    settings = node.settings.model_copy(update={"routes": ()})
    for has_left in (True, False):
        assert before_the_start(settings) is has_left, "the supervisor then has a router"
        if has_left:
            node.settings = settings
            node.restart()
            node.work()
            assert node.jobs()[0].error == "there is no rule 'all' to PACS in the settings any more"


def test_a_disk_that_fails_for_a_while_is_no_fault_of_the_job(routed, start_pacs, make_file, monkeypatch):
    node = routed([RULE], [start_pacs().open().entity], jobs={"max_attempts": 1})
    node.store(make_file(1))

    def fail(*_arguments):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("plugins.routing.lane.send_series", fail)
        node.work()
    assert node.jobs()[0].state == "queued"
    node.hasten()
    node.work()
    assert node.jobs()[0].state == "done"


def test_a_peer_may_ask_for_what_a_rule_told_it(routed, start_pacs, make_file):
    pacs = start_pacs().open()
    node = routed([{**RULE, "profile": "research"}], [pacs.entity], deidentification=[{"name": "research"}])
    node.store(make_file(1))
    node.work()
    (sent,) = pacs.received
    rows = node.archive.database.execute("SELECT original FROM told WHERE profile = 'research' AND uid = ?", (sent,))
    assert rows.fetchone() is not None


def test_what_is_cut_off_goes_through_no_profile(routed, start_pacs, make_file):
    pacs = start_pacs().open()
    node = routed([{**RULE, "profile": "research"}], [pacs.entity], deidentification=[{"name": "research"}])
    cut_off = make_file(1)
    cut_off.write_bytes(cut_off.read_bytes()[:-20])
    node.store(cut_off, make_file(2))
    node.work()
    assert len(pacs.received) == 1
    assert node.states() == {"1": "refused", "2": "sent"}
    (job,) = node.jobs()
    assert job.state == "failed", "it is not tried again"
    assert "the data set is cut off: nobody knows what its end would tell" in job.error


def test_an_object_that_the_deidentifier_stumbles_over_keeps_back_nothing_else(
    routed, start_pacs, make_file, monkeypatch
):
    pacs = start_pacs().open()
    node = routed([{**RULE, "profile": "research"}], [pacs.entity], deidentification=[{"name": "research"}])
    node.store(make_file(1), make_file(2))
    stock = Deidentifier.deidentify

    def stumble(deidentifier, dataset, **options):
        if str(dataset.SOPInstanceUID).endswith(".1"):
            raise NotImplementedError("unknown Value Representation 'ZZ' of SECRET^NAME")
        return stock(deidentifier, dataset, **options)

    monkeypatch.setattr(Deidentifier, "deidentify", stumble)
    node.work()
    assert len(pacs.received) == 1
    (job,) = node.jobs()
    assert "cannot be de-identified (NotImplementedError)" in job.error
    assert "SECRET" not in job.error
