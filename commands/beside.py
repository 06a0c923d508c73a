"""A node beside a command that does other things: in a process of its own, which ends with the command.

``python -m commands.beside FILE`` is that process: it prints the port, and stops when its standard input closes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from commands.console import FAILED, settings_from
from commands.serve import run_node


@contextmanager
def node_beside(config: Path) -> Iterator[int]:
    """Run a node with these settings while the block runs; the value is its port.

    A node that cannot start says why, and ends the command.
    """
    program = [sys.executable, "-P", "-m", "commands.beside", str(config)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as popen:  # noqa: S603
        assert popen.stdin is not None and popen.stdout is not None  # noqa: S101, PT018
        try:
            line = popen.stdout.readline()
            if not line:
                raise typer.Exit(FAILED)
            yield int(line)
        finally:
            popen.stdin.close()
            popen.wait()


def main(config: str) -> None:
    """Be the node."""
    try:
        run_node(
            settings_from(Path(config)),
            lambda supervisor: print(supervisor.port, flush=True),  # noqa: T201
            lifeline=sys.stdin.fileno(),
        )
    except typer.Exit as error:
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(sys.argv[1])
