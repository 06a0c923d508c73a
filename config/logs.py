"""Logging: one line an event, with the process that says it, on standard error."""

from __future__ import annotations

import logging
import sys

_NOISY = {"pynetdicom": logging.WARNING, "pynetdicom.utils": logging.CRITICAL,
          "pynetdicom.dul": logging.CRITICAL, "pynetdicom.dimse": logging.CRITICAL,
          "numba": logging.WARNING, "matplotlib": logging.WARNING,
          "pydicom": logging.ERROR, "highdicom": logging.WARNING, "py.warnings": logging.ERROR,
          "faiss": logging.WARNING}


def configure(level: str, process: str) -> None:
    """Send log records of this process to standard error.

    Parameters
    ----------
    level
        ``DEBUG``, ``INFO``, ``WARNING`` or ``ERROR``. Below DEBUG, libraries that speak a line per PDU stay quiet.
    process
        Name of the process in each line, for example ``network``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s %(levelname)-7s {process:<9} %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S")
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for name, least in _NOISY.items():
        logging.getLogger(name).setLevel(min(least, logging.DEBUG) if level == "DEBUG" else least)
