"""Run directories as their readers see them: whole columns, whatever a running search appends.

`search.run_directory` writes them and takes them up; nothing here changes one. Imports no Keras.
"""

from transfer_nas.runs.reading import FINISHED, IN_PROGRESS, STOPPED, Run, read

__all__ = ["FINISHED", "IN_PROGRESS", "STOPPED", "Run", "read"]
