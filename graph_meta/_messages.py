"""What ranks of the prefix service say to each other: JSON headers and encoded layer tables.

Nothing is pickled: a message can hold no code, and reads the same in every version of Python.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import cpp_store
from cpp_store import LayerTable, Match

REGISTER, BEST_MATCHES, RETIRE = 1, 2, 3  # operations

_REQUEST = struct.Struct("<IIQ")  # operation, tag of the reply, bytes of the JSON header
_REPLY = struct.Struct("<I")  # 0: answer, 1: error; a JSON value follows
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


def encode_request(
    operation: int, reply_tag: int, header: dict[str, Any], table: LayerTable | None
) -> bytes:
    """Lay out a question to one shard; a table follows the header if the operation has one."""
    text = json.dumps(header).encode()
    request = _REQUEST.pack(operation, reply_tag, len(text)) + text
    return request if table is None else request + table.encode()


def decode_request(request: bytearray) -> tuple[int, int, dict[str, Any], bytes]:
    """Return operation, tag of the reply, header and the encoded table."""
    operation, reply_tag, length = _REQUEST.unpack_from(request)
    table_at = _REQUEST.size + length
    return (
        operation,
        reply_tag,
        json.loads(request[_REQUEST.size : table_at]),
        bytes(request[table_at:]),
    )


def encode_reply(value: object) -> bytes:
    """Lay out a shard's answer, or the exception that takes its place."""
    if isinstance(value, Exception):
        return _REPLY.pack(1) + encode_error(value)
    return _REPLY.pack(0) + json.dumps(value).encode()


def decode_reply(reply: bytearray) -> Any:
    """Return the answer; an exception is returned, not raised."""
    content = reply[_REPLY.size :]
    return decode_error(content) if _REPLY.unpack_from(reply)[0] else json.loads(content)


def encode_error(error: Exception) -> bytes:
    """Lay out type and message."""
    return json.dumps([type(error).__name__, str(error)]).encode()


def decode_error(content: bytes | bytearray) -> Exception:
    """Return the exception; types that are not foreseen become `cpp_store.StoreError`."""
    name, message = json.loads(content)
    return _ERRORS.get(name, cpp_store.StoreError)(message)


def match_to_json(match: Match) -> list[Any]:
    return [match.model, match.score, match.sequence, match.layers, match.bytes, match.positions]


def match_from_json(fields: Iterable[Any]) -> Match:
    return Match(*fields)


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
