"""The courier: reads back what peers want to be sure of, and brings them the reports (PS3.4 J.3.3).

Threads of the network process that do jobs of kind `storage_commitment`, as workers do the others. A report goes to the
association on which it was asked for, as long as that is open; else to a new one, on which this node proposes the SCP
role; else to any other association that the same AE has open. What fails is tried again, later and later, for
``[commitment] retry_hours``.

They are as nice as the others of their process, not nicer: who holds the interpreter's lock and has to wait for the
processor has all of them wait.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from weakref import WeakKeyDictionary

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from config.application_entities import ApplicationEntity
from config.settings import Settings
from index import commitments
from index.archive import Archive
from index.commitments import Commitment, State
from index.errors import OutOfSpace
from index.jobs import STORAGE_COMMITMENT as JOB_KIND
from index.jobs import Job
from scp import commitment as messages
from scp.askers import Askers
from scp.carrier import Carrier
from scp.contexts import STORAGE_COMMITMENT, Proposal, is_storage
from scp.errors import AssociationLost, PeerError
from scp.link import Link
from scp.notification import Interrupted, Notifier
from scp.status import Status

_LOG = logging.getLogger(__name__)

_COURIERS = 3
"""At the same time: a peer that takes its time to answer does not keep all others waiting."""

_POLL_S = 0.5
_TIDY_S = 3600.0
_STOP_S = 3.0
_MOST_ATTEMPTS = 1_000_000
"""Attempts are limited by time, not by number."""

_PROPOSALS = [
    Proposal(STORAGE_COMMITMENT, (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)), peer_sends=True)
]

_MOST_NAMED = 20
"""Instances of one request that the log names; the report to the requestor has all of them."""

_FINAL = frozenset({0x0112, 0x0113, 0x0114, 0x0115, 0x0117, 0x0118, 0x0119, 0x0211, 0x0212})
"""Answers to a report that repeating it will not change (PS3.7 10.1.1.1.8); the others may be different next time."""


@dataclass(frozen=True)
class Ways:
    """How to reach peers.

    Attributes
    ----------
    associations
        Those that peers have opened with this node.
    entity
        The peer of that AE title, None when the settings do not name it.
    open_link
        Opens an association with a peer; raises `PeerError`.
    replaced_uid
        Gives the UID under which an inbox, by the name of its profile, has stored what was sent to it.
    """

    associations: Callable[[], list[Carrier]]
    entity: Callable[[str], ApplicationEntity | None]
    open_link: Callable[[ApplicationEntity, list[Proposal]], Link]
    replaced_uid: Callable[[str, str], str]

    def replaced(self, commitment: Commitment) -> Callable[[str], str]:
        """Return what gives the SOP Instance UID under which a referenced one is stored."""
        return partial(self.replaced_uid, commitment.profile) if commitment.profile else str


class _Undelivered(Exception):
    """The report did not reach its requestor; the message says why."""

    def __init__(self, sentence: str, *, permanent: bool = False) -> None:
        super().__init__(sentence)
        self.permanent = permanent


class _ClaimLost(Exception):
    """The job was cancelled, or is somebody else's by now."""


class Courier:
    """Checks and reports what was asked for, in threads of its own.

    Parameters
    ----------
    archive
        Whose requests these are.
    settings
        Of the node.
    askers
        Who waits on which association.
    ways
        How to reach peers.
    name
        Unique among the network processes of the node; a new one of the same name takes back what its predecessor had
        claimed.
    """

    def __init__(self, archive: Archive, settings: Settings, askers: Askers, ways: Ways, *, name: str) -> None:
        self._archive = archive
        self._settings = settings
        self._askers = askers
        self._ways = ways
        self._process = name
        self._names = [f"{name}/courier-{number}" for number in range(1, _COURIERS + 1)]
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._looking = threading.Lock()
        self._seen: WeakKeyDictionary[Carrier, set[int]] = WeakKeyDictionary()
        self._tidy_at = 0.0
        limits = settings.scp
        # Longer than one way to deliver can take: nobody else tries meanwhile.
        self._delivery_s = 2 * limits.dimse_timeout_s + 3 * limits.acse_timeout_s + 60.0

    def start(self) -> None:
        """Begin, with what a predecessor has left."""
        self._stop.clear()
        for name in self._names:
            self._archive.jobs.free_claims_of(name, max_attempts=_MOST_ATTEMPTS)
        self._threads = [
            threading.Thread(target=self._run, args=(name,), name=name, daemon=True) for name in self._names
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Give unfinished jobs back, and end."""
        self._stop.set()
        self._askers.ring()
        deadline = time.monotonic() + _STOP_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, name: str) -> None:
        try:
            while not self._stop.is_set():
                rung = self._askers.rung
                try:
                    self._look_around()
                    if self._run_one(name):
                        continue
                except Exception:  # noqa: BLE001  (a full disk, a long lock: it passes, and the courier has to be there)
                    _LOG.exception("%s could not go on", name)
                self._askers.wait(rung, _POLL_S)
        finally:
            self._archive.close()

    def _look_around(self) -> None:
        """Do what is no job, in one thread at a time."""
        if not self._looking.acquire(blocking=False):
            return
        try:
            self._notice_arrivals()
            if time.monotonic() > self._tidy_at:
                self._tidy_at = time.monotonic() + _TIDY_S
                if self._settings.jobs.keep_days:
                    commitments.forget(self._archive, self._settings.jobs.keep_days * 86400.0)
        finally:
            self._looking.release()

    def _notice_arrivals(self) -> None:
        """Whoever opens an association for storage commitment gets the reports that wait for it now.

        So does who has one open when another process has tried in vain: each report is offered once to each.
        """
        failed = commitments.failed_elsewhere(self._archive, process=self._process)
        for assoc in self._ways.associations():
            offered, waiting = self._seen.get(assoc), failed.get(assoc.calling, set())
            if (offered is None or waiting - offered) and _notifier(assoc) is not None:
                self._seen[assoc] = waiting | (offered or set())
                commitments.hasten(self._archive, assoc.calling, preferred=self._process)

    def _run_one(self, name: str) -> bool:
        queue = self._archive.jobs
        if not queue.is_due((JOB_KIND,)):
            return False
        claim_s = self._settings.jobs.claim_s
        job = queue.claim(name, claim_s=claim_s, max_attempts=_MOST_ATTEMPTS, kinds=(JOB_KIND,), process=self._process)
        if job is None:
            return False
        try:
            self._do(job)
        except (Interrupted, _ClaimLost):
            queue.release(job)
        except _Undelivered as error:
            self._fail(job, str(error), permanent=error.permanent)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is this job's failure, not the courier's)
            _LOG.exception("job %d %s %s failed", job.id, job.kind, job.subject)
            self._fail(job, f"{job.kind}: {type(error).__name__}: {error}", permanent=False)
        else:
            queue.done(job)
        return True

    def _fail(self, job: Job, sentence: str, *, permanent: bool) -> None:
        _LOG.warning("job %d %s %s: %s", job.id, job.kind, job.subject, sentence)
        self._archive.jobs.fail(
            job,
            sentence,
            max_attempts=_MOST_ATTEMPTS,
            retry_delay_s=self._settings.jobs.retry_delay_s,
            permanent=permanent,
        )

    def _do(self, job: Job) -> None:
        commitment = self._get(job)
        if commitment.state is State.REQUESTED:
            self._check(job, commitment)
            commitment = self._get(job)
        if commitment.state is State.REPORTED:
            return
        self._keep(job)
        try:
            self._deliver(job, commitment)
        except _Undelivered as error:
            hours = self._settings.commitment.retry_hours
            given_up = time.time() > commitment.requested_at + hours * 3600.0
            raise _Undelivered(
                f"{error}; given up after {hours:g} h" if given_up and not error.permanent else str(error),
                permanent=given_up or error.permanent,
            ) from error
        commitments.record_report(self._archive, commitment, replaced=self._ways.replaced(commitment))
        self._askers.forget(commitment.requestor, commitment.transaction_uid)

    def _keep(self, job: Job) -> None:
        """Hold the claim for one more way to deliver."""
        if not self._archive.jobs.renew(job, claim_s=self._delivery_s, progress=0.9):
            raise _ClaimLost

    def _get(self, job: Job) -> Commitment:
        found = commitments.get(self._archive, str(job.parameters.get("requestor", "")), job.subject)
        if found is None:
            raise _Undelivered(f"there is no request with Transaction UID {job.subject} any more", permanent=True)
        return found

    def _check(self, job: Job, commitment: Commitment) -> None:
        claim_s = self._settings.jobs.claim_s
        renewed = time.monotonic()

        def on_progress(done: int) -> None:
            nonlocal renewed
            if self._stop.is_set():
                raise Interrupted
            if time.monotonic() - renewed > min(1.0, claim_s / 4):
                renewed = time.monotonic()
                fraction = 0.9 * done / len(commitment.references)
                try:
                    held = self._archive.jobs.renew(job, claim_s=claim_s, progress=fraction)
                except OutOfSpace:  # the claim holds until it expires
                    return
                if not held:
                    raise _ClaimLost

        replaced = self._ways.replaced(commitment)
        failures = commitments.check(
            self._archive,
            commitment.references,
            is_supported=is_storage,
            on_progress=on_progress,
            replaced=replaced,
            only_from=self._may_hear_of(commitment),
        )
        commitments.record_check(self._archive, commitment, failures)
        count = len(commitment.references)
        if failures:
            told = "storage commitment %s of %s: %d of %d instances are not safe"
            _LOG.error(told, commitment.transaction_uid, commitment.requestor, len(failures), count)
            for reference, reason in islice(failures.items(), _MOST_NAMED):
                _LOG.error("instance %s is not safe: %s", replaced(reference.sop_instance_uid), reason.words)
        else:
            told = "storage commitment %s of %s: all %d instances are safe"
            _LOG.info(told, commitment.transaction_uid, commitment.requestor, count)

    def _may_hear_of(self, commitment: Commitment) -> str:
        """Whose objects the report may tell of: an AE with a profile is not told which UIDs the archive holds."""
        entity = self._ways.entity(commitment.requestor)
        sees_all = entity is None or not entity.profile or commitment.profile
        return "" if sees_all else commitment.requestor

    def _deliver(self, job: Job, commitment: Commitment) -> None:
        """Bring the report to its requestor on the first way that works."""
        event_type, information = messages.event(commitment, self._settings.scp.aet)
        troubles: list[str] = []
        with closing(self._notifiers(commitment, troubles)) as notifiers:
            for notifier in notifiers:
                self._keep(job)
                try:
                    status = notifier.report(
                        messages.SOP_INSTANCE_UID, event_type, information, stopping=self._stop.is_set
                    )
                except AssociationLost as error:
                    troubles.append(str(error))
                else:
                    _require_taken(commitment, status)
                    return
        raise _Undelivered(f"{commitment.requestor}: {'; '.join(troubles)}")

    def _notifiers(self, commitment: Commitment, troubles: list[str]) -> Generator[Notifier]:
        """Yield the associations to try, one after the other; why one could not be had is added to `troubles`."""
        asked_on = self._askers.association(commitment.requestor, commitment.transaction_uid)
        notifier = _notifier(asked_on) if asked_on is not None else None
        if notifier is not None:
            yield notifier
        entity = self._ways.entity(commitment.requestor)
        if entity is None or not entity.is_destination:
            troubles.append("it has no host and port in [[application_entities]], and no association is open")
        else:
            try:
                link = self._ways.open_link(entity, _PROPOSALS)
            except PeerError as error:
                troubles.append(str(error))
            else:
                try:
                    yield Notifier(link.carrier, STORAGE_COMMITMENT)
                finally:
                    link.release()  # also when the report was delivered, and no other way is asked for
        for assoc in self._ways.associations():
            if assoc is asked_on or (assoc.calling, assoc.address) != (
                commitment.requestor,
                commitment.address,
            ):
                continue
            if (notifier := _notifier(assoc)) is not None:
                yield notifier


def _require_taken(commitment: Commitment, status: Status) -> None:
    if status.is_success or status.is_warning:
        _LOG.info("%s has the report of storage commitment %s", commitment.requestor, commitment.transaction_uid)
        return
    raise _Undelivered(
        f"{commitment.requestor} answered the report with status {status}", permanent=status.code in _FINAL
    )


def _notifier(assoc: Carrier) -> Notifier | None:
    """The association as a way to report, None when it cannot be used (any more)."""
    if not assoc.is_established:
        return None
    try:
        notifier = Notifier(assoc, STORAGE_COMMITMENT)
    except AssociationLost:
        return None
    return notifier if notifier.is_usable else None
