"""Neural-architecture search on many ranks in which no candidate trains from scratch."""

__version__ = "0.1.0"  # the only place: pyproject.toml and CMakeLists.txt read it from here
