"""How a client's own name for a record becomes the record's id.

The id has the layout of a UUIDv8 (RFC 9562, 5.8): 122 bits of blake2b over canonical bytes. It is
our own hash on purpose: it stays the same on every machine and in every version, so a repeat after
an upgrade still is a duplicate.
"""

from __future__ import annotations

import hashlib

from headrace.model.clock import CHOSEN_BY_CLIENT, UUID_BYTES


def client_id(scope: str, topic: str, text: str) -> bytes:
    """Return the 16-byte id of the record that a client names `text`.

    `scope` says who chose it (a source's kind and name, a token), so that two clients with the same
    names never meet; `topic` keeps the same name in two topics apart. Each part is hashed with its
    length in front, so no two triples have the same bytes. A lone surrogate counts as itself.
    """
    digest = hashlib.blake2b(digest_size=UUID_BYTES)
    for part in (scope, topic, text):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    laid_out = bytearray(digest.digest())
    laid_out[6] = (CHOSEN_BY_CLIENT << 4) | (laid_out[6] & 0x0F)
    laid_out[8] = 0x80 | (laid_out[8] & 0x3F)
    return bytes(laid_out)
