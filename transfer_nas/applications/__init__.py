"""Applications: the tasks that networks are searched for.

`_base.py` says what an application is, `digits.py` is the example, `docs/applications.md` tells
what comes along, and `docs/own_application.md` shows how to bring one's own.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from transfer_nas.applications._base import Application, SpaceChoice
from transfer_nas.applications._batches import Batch, Batches
from transfer_nas.applications._callbacks import EarlyStopping, ReduceLROnPlateau
from transfer_nas.applications._data import PARTS, Arrays, Data, as_tuple
from transfer_nas.applications._disk import OnDisk, shuffled
from transfer_nas.applications._output import Output
from transfer_nas.applications._terms import Terms
from transfer_nas.errors import ApplicationError, near_misses
from transfer_nas.plugins import is_plugin, load_attribute, load_only

NAMES = (
    "attn",
    "breast_cancer",
    "california",
    "combo",
    "diabetes",
    "digits",
    "fashion_mnist",
    "mnist1d",
    "nt3",
    "uno",
)
"""Applications that come along, each a module of this package with an `application` in it."""

__all__ = [
    "NAMES",
    "PARTS",
    "Application",
    "Arrays",
    "Batch",
    "Batches",
    "Data",
    "EarlyStopping",
    "OnDisk",
    "Output",
    "ReduceLROnPlateau",
    "SpaceChoice",
    "Terms",
    "as_tuple",
    "resolve",
    "shuffled",
]


def resolve(spec: str, data: str | None = None) -> Application:
    """Return the application that a user names.

    Parameters
    ----------
    spec
        A name in `NAMES`, with another form of it behind a colon (``attn:published``), or
        ``package.module:attribute`` or ``path/to/file.py:attribute`` of an
        `Application`; of a file that holds one only, ``path/to/file.py`` will do.
    data
        Other data than what comes along; see `Application.with_data`.

    Raises
    ------
    ApplicationError
        There is none (the message names near misses), its module does not import, the attribute
        is something else, or there is something wrong with `data`.
    """
    name, colon, form = spec.partition(":")
    if name in NAMES:
        found = _own(name, form if colon else "application")
    elif spec.endswith(".py"):
        found = load_only(Path(spec), Application, ApplicationError)
    elif is_plugin(spec):
        found = load_attribute(spec, ApplicationError, "Application", _is_application)
    else:
        raise ApplicationError(
            f"unknown application {spec!r}; {near_misses(spec, (*NAMES, 'none'))}; one's own: "
            "package.module:attribute or path/to/file.py:attribute"
        )
    if not isinstance(found, Application):
        raise ApplicationError(f"{spec} is not a transfer_nas.applications.Application: {found!r}")
    return found if data is None else found.with_data(data)


def _own(name: str, form: str) -> Application:
    """Return an application of this package, or another form of it."""
    module = importlib.import_module(f"transfer_nas.applications.{name}")
    forms = [key for key, value in vars(module).items() if isinstance(value, Application)]
    if form not in forms:
        raise ApplicationError(
            f"application {name} has no form {form!r}; {near_misses(form, forms)}"
        )
    found: Application = getattr(module, form)
    return found


def _is_application(value: object, _: str) -> bool:
    return isinstance(value, Application)
