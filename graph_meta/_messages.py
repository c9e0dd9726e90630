"""What ranks of the prefix service say to each other: JSON headers and encoded layer tables.

Nothing is pickled: a message can hold no code, and reads the same in every version of Python.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

import cpp_store
from cpp_store import LayerTable, Match

_LENGTH = struct.Struct("<Q")

_ANSWER = np.dtype(
    [
        ("found", "u1"),
        ("score", "<f8"),
        ("sequence", "<u8"),
        ("layers", "<u8"),
        ("bytes", "<u8"),
        ("model", "<u4"),  # bytes of the id, which follow in the text part
        ("positions", "<u4"),  # number of positions, which follow in the position part
    ]
)

# Errors keep their type on the way from the shard to the rank that asked.
_ERRORS: dict[str, type[Exception]] = {
    error.__name__: error
    for error in (
        cpp_store.AlreadyExists,
        cpp_store.InvalidArgument,
        cpp_store.NotFound,
        cpp_store.ProtocolError,
        ValueError,
    )
}


def encode_error(error: Exception) -> bytes:
    """Lay out type and message."""
    return json.dumps([type(error).__name__, str(error)]).encode()


def decode_error(content: bytes | bytearray) -> Exception:
    """Return the exception; types that are not foreseen become `cpp_store.StoreError`."""
    name, message = json.loads(content)
    return _ERRORS.get(name, cpp_store.StoreError)(message)


def encode_batch(header: dict[str, Any], tables: Sequence[LayerTable]) -> bytes:
    """Length of the JSON header, header (with the tables' sizes), encoded tables."""
    blobs = [table.encode() for table in tables]
    text = json.dumps({**header, "sizes": [len(blob) for blob in blobs]}).encode()
    return b"".join([_LENGTH.pack(len(text)), text, *blobs])


def decode_batch(batch: memoryview | bytes) -> tuple[dict[str, Any], list[LayerTable]]:
    (length,) = _LENGTH.unpack_from(batch)
    at = _LENGTH.size + length
    header: dict[str, Any] = json.loads(bytes(batch[_LENGTH.size : at]))
    tables = []
    for size in header["sizes"]:
        tables.append(LayerTable.decode(bytes(batch[at : at + size])))
        at += size
    return header, tables


def encode_answers(matches: Sequence[Match | None]) -> bytes:
    """Lay out fixed records of all answers, then their positions, then their model ids."""
    records = np.zeros(len(matches), dtype=_ANSWER)
    positions: list[int] = []
    ids: list[bytes] = []
    for i, match in enumerate(matches):
        if match is None:
            continue
        model, where = match.model.encode(), match.positions
        records[i] = (
            1,
            match.score,
            match.sequence,
            match.layers,
            match.bytes,
            len(model),
            len(where),
        )
        positions += where
        ids.append(model)
    return records.tobytes() + np.array(positions, dtype="<u4").tobytes() + b"".join(ids)


def decode_answers(batch: memoryview | bytes, count: int) -> list[Match | None]:
    records = np.frombuffer(batch, dtype=_ANSWER, count=count)
    at = count * _ANSWER.itemsize
    lengths = records["positions"].astype(np.int64)
    positions = np.frombuffer(batch, dtype="<u4", count=int(lengths.sum()), offset=at).tolist()
    at += 4 * len(positions)
    matches: list[Match | None] = []
    first = 0
    for found, score, sequence, layers, nbytes, id_length, length in records.tolist():
        if not found:
            matches.append(None)
            continue
        model = bytes(batch[at : at + id_length]).decode()
        where = positions[first : first + length]
        matches.append(Match(model, score, sequence, layers, nbytes, where))
        at += id_length
        first += length
    return matches
