"""Objects de-identified on their way in or out: into a scratch file of the archive that does not stay.

What is scratch bears the number of its process and is removed when that has died.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from index.archive import StoredInstance
from index.deidentification.deidentifier import Deidentifier
from index.errors import CannotDeidentify, OutOfSpace
from index.part10 import NewFile
from index.views import View
from scp.part10 import read_object


@contextmanager
def deidentified_file(deidentifier: Deidentifier, source: Path, new_file: NewFile) -> Iterator[Path]:
    """Give the Part 10 file `source` de-identified, for as long as it is needed.

    Raises
    ------
    CannotDeidentify
        It cannot be made safe; the sentence has no value of it.
    OutOfSpace
        There is no room for it.
    """
    path = new_file(source.stat().st_size)
    try:
        try:
            deidentifier.deidentify_file(source, path)
        except (CannotDeidentify, OutOfSpace, OSError):
            raise
        except Exception as error:  # noqa: BLE001  (pydicom raises of all kinds, and quotes what it stumbles over)
            raise CannotDeidentify(f"it cannot be de-identified ({type(error).__name__})") from None
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def deidentified(view: View, new_file: NewFile, instance: StoredInstance) -> Iterator[StoredInstance]:
    """Give what is sent in the place of `instance` to who sees it through `view`; raises as `deidentified_file`."""
    with deidentified_file(view.deidentifier, instance.path, new_file) as path:
        sent = read_object(path)
        yield replace(
            instance,
            path=path,
            size=path.stat().st_size,
            sha256="",
            sop_class_uid=sent.sop_class_uid,
            sop_instance_uid=sent.sop_instance_uid,
            study_instance_uid=view.tell(instance.study_instance_uid),
            series_instance_uid=view.tell(instance.series_instance_uid),
            transfer_syntax_uid=sent.transfer_syntax_uid,
        )
