"""``tharsis serve``: run the node."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from commands.console import ConfigOption, DataOption, fail, out, settings_from
from commands.supervisor import StartError, Supervisor
from config import logs


def serve(
    config: ConfigOption = None,
    data: DataOption = None,
    port: Annotated[int | None, typer.Option(help="TCP port (0: any free one).")] = None,
    aet: Annotated[str | None, typer.Option(help="AE title of the node, at most 12 characters.")] = None,
) -> None:
    """Run the node until Ctrl-C or SIGTERM.

    It listens for DICOM on the port of the settings (11112), stores what it is sent, reconstructs, segments and
    embeds it, and answers queries. Running associations may finish when it stops; a job that is under way goes back
    to the queue.

    Try it:  tharsis serve      then, in another terminal:      echoscu -aec THARSIS localhost 11112
    """
    settings = settings_from(config, data=data, port=port, aet=aet)
    logs.configure(settings.logs.level, "node")
    supervisor = Supervisor(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.request_stop())
    try:
        supervisor.start()
    except StartError as error:
        fail(str(error))
    scp = settings.scp
    first, *further = [
        f"{scp.host}:{port}{how}" for port, how in ((supervisor.port, ""), (supervisor.tls_port, " with TLS")) if port
    ]
    also = "".join(f" and on {address}" for address in further)
    out.print(
        f"{scp.aet} listens on {first}{also} (similar cases: {scp.similarity_aet}), "
        f"data in {Path(settings.archive.data).resolve()}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    supervisor.run()
    out.print(f"{scp.aet} has stopped.")
