"""What to install for a part that needs more than the packages which always come along."""

from __future__ import annotations

import re

DISTRIBUTION = "transfer-nas"


def install(extra: str) -> str:
    """Return the command that installs what an extra of this distribution brings.

    It names the packages themselves, so it works wherever this one came from: a wheel, a checkout.
    """
    extras = _packages()
    if not extras:
        return f'pip install ".[{extra}]" (in the checkout)'
    if extra not in extras:
        raise ValueError(f"{DISTRIBUTION} has no extra {extra!r}")
    return "pip install " + " ".join(f'"{package}"' for package in extras[extra])


def missing(error: ModuleNotFoundError) -> str | None:
    """Return a line that says what to install; None if no extra brings the module."""
    module = (error.name or "").partition(".")[0]
    for extra, packages in _packages().items():
        if any(re.split(r"[^\w.-]", package)[0].lower() == module.lower() for package in packages):
            return f"this needs {module}, which is not installed: {install(extra)}"
    return None


def _packages() -> dict[str, list[str]]:
    """Return the requirements of each extra; none where there is no distribution."""
    import importlib.metadata  # slow: only for those who lack something

    found: dict[str, list[str]] = {}
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # a source tree on the path
        return found
    for requirement in requirements:
        package, _, marker = requirement.partition(";")
        if extra := re.fullmatch(r"""\s*extra == ["']([\w-]+)["']\s*""", marker):
            found.setdefault(extra[1], []).append(package.replace(" ", ""))
    return found
