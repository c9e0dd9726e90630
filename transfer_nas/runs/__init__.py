"""Run directories as their readers see them: whole columns, whatever a running search appends.

`search.run_directory` writes them and takes them up; nothing here changes one. Imports no Keras.
"""

from pathlib import Path

from transfer_nas.runs.packing import open_files, pack, read_packed, unpack
from transfer_nas.runs.reading import FINISHED, IN_PROGRESS, STOPPED, Run, read_directory

__all__ = ["FINISHED", "IN_PROGRESS", "STOPPED", "Run", "open_files", "pack", "read", "unpack"]


def read(path: str | Path) -> Run:
    """Read a run directory, or a run that `pack` made one file of.

    Raises
    ------
    RunDirectoryError
        It is neither, of a newer version, or damaged; the message says which.
    """
    path = Path(path)
    return read_packed(path) if path.is_file() else read_directory(path)
