"""The job `route`: the instances of a series that a destination does not have are sent to it, one after the other.

What becomes of each is noted at once. A job that is interrupted, killed or tried again goes on behind what was noted;
at most the one instance whose answer was not noted is sent twice.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from config.routes import Commit
from index import deliveries
from index.archive import StoredInstance
from index.commitments import Reference
from index.deliveries import Delivery, Pending, State
from index.errors import ArchiveError, NotFound, OutOfSpace
from index.jobs import CONFIRM_ROUTE
from index.read_ahead import read_ahead
from index.sending import Fate, Lost, Sent, Unreachable
from index.told import note_studies
from plugins.node import CannotProceed
from plugins.routing.errand import Errand, Later, Trouble
from plugins.routing.outgoing import outgoing
from plugins.routing.rules import comes_from
from plugins.routing.sender import Line

logger = logging.getLogger(__name__)

_MOST_LOST = 3
"""Associations that may end one after the other, each with another instance, before the destination is let alone."""


def send_series(errand: Errand) -> None:
    """Send what the destination does not have.

    Raises
    ------
    Closed
        The schedule's window ended.
    Trouble
        The destination cannot be worked with now.
    Later
        It could not take some of the instances now; the others were sent.
    CannotProceed
        It refused some for good; the others were sent.
    """
    errand.require_open()
    waiting = _waiting(errand)
    if waiting:
        _Sending(errand, waiting).run()
    _conclude(errand)


def _waiting(errand: Errand) -> list[tuple[StoredInstance, Pending]]:
    found = []
    for each in deliveries.pending(errand.archive, errand.job.subject, errand.way, tried_since=errand.job.created):
        if each.source_aet == errand.title or not comes_from(errand.rule, each.source_aet):
            continue
        with suppress(NotFound):  # deleted meanwhile
            found.append((errand.archive.open_instance(each.sop_instance_uid), each))
    return found


def _conclude(errand: Errand) -> None:
    """Have it confirmed, and tell what was refused."""
    archive, job = errand.archive, errand.job
    if errand.rule.commit is not Commit.NEVER and deliveries.unconfirmed(archive, job.subject, errand.way):
        archive.jobs.push(CONFIRM_ROUTE, job.subject, job.parameters)
    refused = deliveries.refused(archive, job.subject, errand.way, since=job.created)
    if refused:
        uid, why = refused[0]
        told = f"{len(refused)} of the instances cannot be sent to {errand.title}, all others were"
        raise CannotProceed(f"{told}: {why} (the first is {uid})")


class _Sending:
    """One attempt to send instances."""

    def __init__(self, errand: Errand, waiting: list[tuple[StoredInstance, Pending]]) -> None:
        self._errand = errand
        self._waiting = waiting
        self._stored = 0
        self._lost_in_a_row = 0
        self._later: list[str] = []

    def run(self) -> None:
        errand = self._errand
        if errand.deidentifier is not None:  # what the peer is told, it may ask for
            studies = (instance.study_instance_uid for instance, _ in self._waiting)
            note_studies(errand.archive, errand.way.profile, studies, errand.deidentifier.uid)
        kinds = dict.fromkeys((each.sop_class_uid, each.transfer_syntax_uid) for each, _ in self._waiting)
        rule = errand.rule
        with errand.sender.line(
            errand.title, kinds, priority=rule.priority, max_instances=rule.max_instances
        ) as line:
            instances = read_ahead([instance for instance, _ in self._waiting])
            for number, (instance, (_, pending)) in enumerate(zip(instances, self._waiting, strict=True)):
                errand.progress(number / len(self._waiting))
                errand.require_open()
                self._send(line, instance, pending)
        if self._lost_in_a_row and self._later and not self._stored:
            raise Trouble(self._later[-1], is_of_job=True)
        if self._later:
            count = f"{len(self._later)} of {len(self._waiting)} instances"
            raise Later(f"{count} could not be sent to {errand.title} yet: {self._later[0]}")

    def _send(self, line: Line, instance: StoredInstance, pending: Pending) -> None:
        errand, sent_as = self._errand, Reference(instance.sop_class_uid, instance.sop_instance_uid)
        if instance.damage:
            self._note(instance, pending, sent_as, Sent(Fate.LATER, f"the stored file is {instance.damage}"))
            return
        try:
            with outgoing(errand.archive, instance, errand.deidentifier) as leaving:
                sent_as = Reference(leaving.sop_class_uid, leaving.sop_instance_uid)
                sent = line.send(leaving)
        except Unreachable as error:
            raise Trouble(str(error), is_of_job=False) from error
        except Lost as error:
            self._lost_in_a_row += 1
            self._note(instance, pending, sent_as, Sent(Fate.LATER, str(error)))
            if self._lost_in_a_row == _MOST_LOST:
                raise Trouble(f"{errand.title}: {error}", is_of_job=True) from error
            return
        except (FileNotFoundError, OutOfSpace) as error:
            told = str(error) if isinstance(error, OutOfSpace) else "its file is missing here"
            self._note(instance, pending, sent_as, Sent(Fate.LATER, told))
            return
        except ArchiveError as error:  # it cannot be de-identified
            self._note(instance, pending, sent_as, Sent(Fate.REFUSED, str(error)))
            return
        self._lost_in_a_row = 0
        self._note(instance, pending, sent_as, sent)
        if sent.fate is Fate.FULL:
            raise Trouble(f"{errand.title} {sent.told}", is_of_job=True)

    def _note(self, instance: StoredInstance, pending: Pending, sent_as: Reference, sent: Sent) -> None:
        errand = self._errand
        state = {Fate.STORED: State.SENT, Fate.REFUSED: State.REFUSED}.get(sent.fate, State.FAILING)
        told = sent.told
        if state is State.FAILING and pending.since is not None and errand.is_overdue(pending.since):
            state, told = State.REFUSED, f"{told}; given up after {errand.rule.retry_hours:g} h"
        delivery = Delivery(
            way=errand.way,
            sop_instance_uid=instance.sop_instance_uid,
            series_instance_uid=instance.series_instance_uid,
            sha256=instance.sha256,
            sent_as=sent_as,
            rule=str(errand.job.parameters.get("rule", "")),
        )
        deliveries.record(errand.archive, delivery, state, told)
        self._stored += state is State.SENT
        if state is State.FAILING:
            self._later.append(told)
        if told:
            logger.warning("%s to %s: %s", instance.sop_instance_uid, errand.title, told)
