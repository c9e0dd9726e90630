"""Search algorithms: one file each; `_base.py` states the contract."""
