"""The job `confirm_route`: a destination is asked whether it keeps what of a series it was sent (PS3.4 Annex J).

Its report comes on the same association, or later to the network process, which notes it where this job finds it.
"""

from __future__ import annotations

import logging

from config.identity import new_uid
from config.routes import Commit
from index import deliveries
from index.sending import Lost, NotOffered, Unreachable
from plugins.node import CannotProceed
from plugins.routing.errand import Awaiting, Errand, Later, Trouble

logger = logging.getLogger(__name__)

_AT_ONCE_S = 2.0
"""How long the report is waited for on the association of the request, seconds: other series wait meanwhile."""


def confirm_series(errand: Errand) -> None:
    """Ask for what is sent and not confirmed; done when nothing of that is left.

    Raises
    ------
    Awaiting
        The destination took the request; its report has not come yet.
    Trouble, Later
        The destination cannot be asked now.
    CannotProceed
        It offers no storage commitment and the rule requires it, or its report has not come in all the time since the
        last of them was sent, or a person had the job tried again.
    """
    archive, way = errand.archive, errand.way
    waiting = deliveries.unconfirmed(archive, errand.job.subject, way)
    if not waiting:
        return
    if errand.is_overdue(max(each.sent_at for each in waiting)):
        hours = f"{errand.rule.retry_hours:g} h"
        raise CannotProceed(f"{errand.title} has not said within {hours} that it keeps {len(waiting)} instances")
    transaction_uid = new_uid()
    deliveries.note_request(archive, transaction_uid, way, waiting)
    references = [each.sent_as for each in waiting]
    try:
        report = errand.sender.ask(errand.title, transaction_uid, references, wait_s=_AT_ONCE_S)
    except NotOffered as error:
        if errand.rule.commit is Commit.REQUIRED:
            raise CannotProceed(f"{error}, which the rule {errand.rule.name!r} requires") from error
        logger.info("%s: %d instances are sent, and not confirmed", error, len(waiting))
        return
    except Unreachable as error:
        raise Trouble(str(error), is_of_job=False) from error
    except Lost as error:
        raise Later(str(error)) from error
    if report is not None:
        deliveries.take_report(archive, transaction_uid, report.committed, report.failures)
    left = deliveries.unconfirmed(archive, errand.job.subject, way)
    if left:
        told = f"{errand.title} was asked whether it keeps {len(left)} instances; its report has not come yet"
        raise Awaiting(told, errand.clock() + errand.report_s)
