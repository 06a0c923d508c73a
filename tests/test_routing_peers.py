"""Routing to peers that other people wrote, through de-identification, and over the death of the router."""

from __future__ import annotations

import os
import signal
import threading

import pydicom
import pytest
from routed import Pacs

from index.archive import Archive
from scp import client
from scp.client import Requestor

UID = "1.2.826.0.1.3680043.9.7133.9.{}".format


def storescp(port):
    return {"title": "STORESCP", "host": "127.0.0.1", "port": port}


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--refuse", "STORESCP at 127.0.0.1:{port} rejected the association"),
        ("--abort-during", "no response to C-STORE: aborted"),
        ("--abort-after", "no response to C-STORE: aborted"),
    ],
)
def test_a_storescp_that_refuses_or_aborts_gets_everything_when_it_behaves(
    routed, start_storescp, make_file, option, words
):
    _, bad = start_storescp(option)
    rule = {"name": "all", "to": ["STORESCP"]}
    node = routed([rule], [storescp(bad)])
    node.store(make_file(1), make_file(2))
    node.work("STORESCP")
    (job,) = node.jobs()
    assert job.state == "queued"
    assert words.format(port=bad) in job.error
    folder, good = start_storescp()
    node.settings = routed([rule], [storescp(good)]).settings
    node.restart()
    node.hasten()
    node.work("STORESCP")
    stored = sorted(pydicom.dcmread(path).SOPInstanceUID for path in folder.iterdir())
    assert stored == [UID(1), UID(2)]
    assert {job.state for job in node.jobs()} == {"done"}
    assert set(node.states().values()) == {"sent"}


def test_a_storescp_that_is_slow_is_waited_for(routed, start_storescp, make_file):
    folder, port = start_storescp("--sleep-during", "1")
    node = routed([{"name": "all", "to": ["STORESCP"]}], [storescp(port)])
    node.store(make_file(1))
    node.work("STORESCP")
    assert [job.state for job in node.jobs()] == ["done"]
    assert len(list(folder.iterdir())) == 1


def test_on_the_way_an_object_is_deidentified_and_what_cannot_be_is_told(routed, start_storescp, make_file):
    folder, port = start_storescp()
    node = routed(
        [{"name": "research", "to": ["STORESCP"], "profile": "research"}],
        [storescp(port)],
        deidentification=[{"name": "research"}],
    )
    node.store(make_file(1), make_file(2), make_file(3, BurnedInAnnotation="YES"))
    node.work("STORESCP")
    sent = [pydicom.dcmread(path) for path in folder.iterdir()]
    assert len(sent) == 2
    for dataset in sent:
        assert dataset.PatientIdentityRemoved == "YES"
        assert "Doe" not in str(dataset)
        assert not {dataset.SOPInstanceUID, dataset.StudyInstanceUID} & {UID(1), UID(2), "1.2.826.0.1.3680043.9.7133.1"}
    assert len({dataset.SeriesInstanceUID for dataset in sent}) == 1
    (job,) = node.jobs()
    assert job.state == "failed"
    assert job.error.startswith("1 of the instances cannot be sent to STORESCP, all others were: ")
    assert UID(3) in job.error
    assert node.states() == {"1": "sent", "2": "sent", "3": "refused"}
    sent_as = {uid for (uid,) in node.archive.database.execute("SELECT sent_uid FROM delivery WHERE state = 'sent'")}
    assert sent_as == {dataset.SOPInstanceUID for dataset in sent}
    assert list(node.archive.incoming.iterdir()) == []


def test_a_ring_of_nodes_ends(tmp_path, start_node, make_file, routed):
    """Three nodes that send everything on: what comes round is known, and goes no further."""
    nodes = [start_node(aet=title, unknown_rights=["store"], data=tmp_path / f"routed{number}")
             for number, title in enumerate("ABC")]  # fmt: skip
    ring = []
    for number, title in enumerate("ABC"):
        following = "ABC"[(number + 1) % 3]
        entity = {"title": following, "host": "127.0.0.1", "port": nodes[(number + 1) % 3].port}
        rule = {"name": "on", "to": [following], "commit": "never"}
        ring.append((routed([rule], [entity], scp={"aet": title}), following))
    ring[0][0].store(make_file(1))
    rounds = 0
    while any(node.archive.jobs.pending() for node, _ in ring):
        rounds += 1
        assert rounds < 5
        for node, following in ring:
            node.hasten()
            node.stabilise()
            node.work(following)
    assert all(node.archive.open_instance(UID(1)) for node, _ in ring)
    assert [len(node.jobs()) for node, _ in ring] == [1, 1, 1]


@pytest.mark.slow
def test_the_router_dies_in_the_middle_and_nothing_is_lost_or_sent_twice(serve, make_file, wait_until):
    pacs = Pacs()
    reached, go_on = threading.Event(), threading.Event()

    def answer(_event):
        if len(pacs.received) == 5 and not go_on.is_set():
            reached.set()
            go_on.wait(60)
        return 0

    pacs.answer = answer
    pacs.open()
    try:
        node = serve(
            more=f"[similarity]\nenabled = false\n[jobs]\nretry_delay_s = 0.5\n"
            f'[[application_entities]]\ntitle = "PACS"\nhost = "127.0.0.1"\nport = {pacs.port}\n'
            '[[routes]]\nname = "all"\nto = ["PACS"]\ncommit = "never"\n'
        )
        files = [make_file(number) for number in range(1, 13)]
        assert all(result.is_stored for result in client.send(node.peer, files, Requestor("SENDER")))
        assert reached.wait(120)
        os.kill(node.processes()["router"], signal.SIGKILL)
        go_on.set()
        archive = Archive(node.data)
        ended = {"done", "cancelled"}  # the latter where the series was stable too early, and then again
        wait_until(lambda: all(job.state in ended for job in archive.jobs.recent() if job.kind == "route")
                   and len(pacs.received) == 12)  # fmt: skip
        archive.close()
    finally:
        go_on.set()
        pacs.close()
    # The one under way when the router died was stored, and nobody could note it.
    assert sorted(pacs.received.values()) in ([1] * 12, [1] * 11 + [2])
