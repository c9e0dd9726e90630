"""The search: who evaluates a candidate, what is kept. docs/search.md.

Which candidate comes next is decided by `transfer_nas.algorithms`. `manager.py` is the loop's
state, without MPI; `serial.py` and `mpi.py` drive it, `evaluation.py` or a child process
(`isolation.py`) evaluates. `run_directory.py` is what a run leaves on disk, `run.py` one search
from the first check to the summary. Nothing here imports Keras before there is something to train.
"""
