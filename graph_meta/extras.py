"""What to install for a part that needs more than the packages which always come along."""

from __future__ import annotations

import importlib.metadata


def install(extra: str) -> str:
    """Return the command that installs what an extra of ``transfer-nas`` brings.

    It names the packages themselves, so it works wherever this one came from: a wheel, a checkout.
    """
    try:
        requirements = importlib.metadata.requires("transfer-nas") or []
    except importlib.metadata.PackageNotFoundError:  # a source tree on the path
        return f'pip install ".[{extra}]" (in the checkout)'
    parts = [requirement.partition(";") for requirement in requirements]
    packages = [
        package.replace(" ", "")
        for package, _, marker in parts
        if marker.replace("'", '"').strip() == f'extra == "{extra}"'
    ]
    if not packages:
        raise ValueError(f"transfer-nas has no extra {extra!r}")
    return "pip install " + " ".join(f'"{package}"' for package in packages)
