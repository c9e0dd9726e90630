"""The search: which candidate comes next (`evolution.py`), who evaluates it, what is kept.

`manager.py` is the loop's state, without MPI; `serial.py` and `mpi.py` drive it;
`run_directory.py` is what a run leaves on disk. Nothing here imports Keras.
"""
