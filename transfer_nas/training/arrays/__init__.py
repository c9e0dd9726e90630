"""Training in NumPy. Start reading at `engine.py`; `layers.py` is the list of what it knows."""
