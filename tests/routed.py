"""What tests of routing share: a peer that misbehaves as it is told, and a router whose lanes the test drives."""

from __future__ import annotations

import socket
import time
from collections import Counter

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt

from commands.routing import make_router
from config.settings import load_settings
from index.archive import Archive
from plugins.manager import load_plugins
from plugins.worker import Worker


class ReservedPort:
    """A port of 127.0.0.1 that the system gives to nobody else, though nobody listens there yet, or any more."""

    def __init__(self):
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # so that who listens can bind it as well
        self._held.bind(("127.0.0.1", 0))
        self.number = self._held.getsockname()[1]

    def close(self):
        self._held.close()


class Pacs:
    """A storage SCP. `answer` says with which Status, or does something before; `received` counts what came."""

    def __init__(self, title="PACS"):
        self._reserved = ReservedPort()
        self.title, self.port = title, self._reserved.number
        self.received = Counter()
        self.associations = 0
        self.rejects = False
        self.answer = lambda _event: 0
        self.contexts = [(CTImageStorage, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])]
        self.handlers = []
        self._server = None

    @property
    def entity(self):
        return {"title": self.title, "host": "127.0.0.1", "port": self.port, "rights": ["store"]}

    def open(self):
        entity = AE(self.title)
        entity.require_called_aet = self.rejects
        entity.ae_title = "SOMEBODY" if self.rejects else self.title
        for uid, syntaxes in self.contexts:
            entity.add_supported_context(uid, syntaxes)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_ACCEPTED, self._accepted), *self.handlers]
        self._server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        return self

    def close(self):
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def give_back(self):
        """Be done with it, port and all."""
        self.close()
        self._reserved.close()

    def _accepted(self, _event):
        self.associations += 1

    def _store(self, event):
        status = self.answer(event)
        if status == 0 or status & 0xF000 == 0xB000:
            self.received[event.request.AffectedSOPInstanceUID] += 1
        return status


class Routed:
    """An archive with rules, whose lanes work when the test says so. `now` is what the lanes take for the time."""

    def __init__(self, folder, routes, entities, **settings):
        patience = {"acse_timeout_s": 60.0, "dimse_timeout_s": 60.0, "network_timeout_s": 60.0}
        overrides = {
            "archive": {"data": str(folder), "reserve_mb": 0, "settle_time_s": 0.0},
            "jobs": {"retry_delay_s": 30.0, **settings.pop("jobs", {})},
            "segmentation": {"enabled": False},
            "similarity": {"enabled": False},
            "scp": {**patience, **settings.pop("scp", {})},
            "application_entities": entities,
            "routes": routes,
            **settings,
        }
        self.settings = load_settings(environment={}, overrides=overrides)
        self.archive = Archive.from_settings(self.settings.archive)
        self._plugins = load_plugins(only=["routing"])
        self.now = None
        self.restart()

    def restart(self):
        self.router = make_router(self.archive, self.settings, clock=lambda: self.now or time.time())
        self.lanes = self.router._lanes

    def store(self, *files, source_aet="SCANNER"):
        for file in files:
            self.archive.ingest(file, source_aet=source_aet)
        self.stabilise()

    def stabilise(self):
        """Ask the rules about what has become stable, as a worker does."""
        Worker(self.archive, self.settings, "worker", self._plugins).run_until_idle()

    def work(self, title="PACS"):
        """Do all that is due for a destination."""
        while self.lanes[title].run_one():
            pass

    def jobs(self, *kinds):
        """The jobs of these kinds, the oldest first."""
        return [job for job in reversed(self.archive.jobs.recent()) if job.kind in (kinds or ("route",))]

    def states(self):
        rows = self.archive.database.execute("SELECT sop_instance_uid, state FROM delivery")
        return {uid.rpartition(".")[2]: state for uid, state in rows.fetchall()}

    def let_pass(self, hours):
        """Make all that was noted so much older."""
        with self.archive.transaction() as database:
            for table, columns in (
                ("job", ("created", "not_before", "started", "finished")),
                ("delivery", ("since", "at")),
                ("destination_trouble", ("since", "next_try")),
            ):
                changed = ", ".join(f"{column} = {column} - {3600.0 * hours}" for column in columns)
                database.execute(f"UPDATE {table} SET {changed}")

    def hasten(self):
        """Let all waits be over."""
        with self.archive.transaction() as database:
            database.execute("UPDATE destination_trouble SET next_try = 0")
            database.execute("UPDATE job SET not_before = 0 WHERE state = 'queued'")


@pytest.fixture
def start_pacs():
    started = []

    def start(title="PACS"):
        started.append(Pacs(title))
        return started[-1]

    yield start
    for pacs in started:
        pacs.give_back()


@pytest.fixture
def reserved_port():
    """The number of a port where nobody listens, unless the test does."""
    port = ReservedPort()
    yield port.number
    port.close()


@pytest.fixture
def routed(tmp_path):
    made = []

    def make(routes, entities, **settings):
        made.append(Routed(tmp_path / f"routed{len(made)}", routes, entities, **settings))
        return made[-1]

    yield make
    for each in made:
        each.archive.close()
