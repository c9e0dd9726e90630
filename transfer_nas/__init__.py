"""Neural-architecture search on many ranks in which no candidate trains from scratch.

`search` is the way in from a program, `Search` from a notebook, ``transfer-nas search`` from a
terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transfer_nas.interactive import Search as Search
    from transfer_nas.interactive import search as search

__all__ = ["Search", "__version__", "search"]

__version__ = "0.1.0"  # the only place: pyproject.toml and CMakeLists.txt read it from here


def __getattr__(name: str) -> Any:
    """Import what is asked for: ``import transfer_nas`` alone costs nothing."""
    if name in ("Search", "search"):
        from transfer_nas import interactive

        return getattr(interactive, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
