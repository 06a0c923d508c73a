"""``tharsis serve``: run the node."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.console import ConfigOption, DataOption, fail, out, settings_from
from commands.state import StartError, StoppedAtStart
from config import logs
from config.settings import Settings

if TYPE_CHECKING:
    from commands.supervisor import Supervisor

_ENVIRONMENT = {"OPENBLAS_THREAD_TIMEOUT": "4"}
"""Of a node. OpenBLAS's threads wait for more work by computing nothing, for a tenth of a second after every matrix
product (2²⁸ cycles): a similarity query then takes twice the processor time. Now they wait for 2⁴ cycles."""


def serve(
    config: ConfigOption = None,
    data: DataOption = None,
    port: Annotated[str | None, typer.Option(metavar="PORT", help="TCP port (0: any free one).")] = None,
    aet: Annotated[str | None, typer.Option(help="AE title of the node, at most 12 characters.")] = None,
) -> None:
    """Run the node until Ctrl-C or SIGTERM.

    It listens for DICOM on the port of the settings (11112), stores what it is sent, reconstructs, segments and
    embeds it, and answers queries. Running associations may finish when it stops; a job that is under way goes back
    to the queue.

    Example:  tharsis serve

    Try it from another terminal:  echoscu -aec THARSIS localhost 11112
    """
    settings = settings_from(config, data=data, port=port, aet=aet)

    def tell(supervisor: Supervisor) -> None:
        scp = settings.scp
        ports = (supervisor.port, ""), (supervisor.tls_port, " with TLS")
        first, *further = [f"{scp.host}:{port}{how}" for port, how in ports if port]
        also = "".join(f" and on {address}" for address in further)
        out.print(
            f"{scp.aet} listens on {first}{also} (similar cases: {scp.similarity_aet}), "
            f"data in {Path(settings.archive.data).resolve()}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )

    run_node(settings, tell)
    out.print(f"{settings.scp.aet} has stopped.")


def run_node(settings: Settings, tell: Callable[[Supervisor], None], lifeline: int | None = None) -> None:
    """Run a node in this process, which is for nothing else, until SIGINT, SIGTERM, or the end of its lifeline.

    Parameters
    ----------
    tell
        Called when every process of the node is ready.
    lifeline
        As of `Supervisor.run`.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    gc.disable()  # the imports are a sixth quicker without; `commands.forked.prepare_to_fork` enables it
    from commands.supervisor import Supervisor  # and with it OpenBLAS, which looks at the environment once

    logs.configure(settings.logs.level, "node")
    supervisor = Supervisor(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.request_stop())
    try:
        supervisor.start()
    except StoppedAtStart:
        return
    except StartError as error:
        fail(str(error))
    tell(supervisor)
    supervisor.run(lifeline)
