"""`Idempotency-Key`: a request that is sent again is carried out once, and answered again as it was
(for 24 hours).

The answer is a row (`models.Receipt`) that the handler has `db` write in the transaction that does
what was asked for. So there is no moment at which one is stored without the other: whoever dies
between the commit and the answer, the repetition finds the row. Of two that run at the same time,
the second to commit meets the row of the first, has nothing stored, and gives that answer. Before
that, a process that still works on the first says 409 to the second.

What was refused has no receipt: nothing was done, so the same key may be used again once the reason
is gone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from magnum_lite import context, db, errors, models
from magnum_lite.api.request import Answer

HEADER = 'Idempotency-Key'
#: What the header may be.
PATTERN = r'^[!-~]{1,255}$'
#: Digests of the keys that this process works on.
_running: set[str] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class Key:
    """What a key stands for. `digest`: the key of this user in this project; `fingerprint`: what is
    asked for."""

    digest: str
    fingerprint: str


def key(header: str, caller: context.Caller, *asked: Any) -> Key:
    """What a header stands for. Raises Invalid for what is no key."""
    if not re.fullmatch(PATTERN, header):
        raise errors.Invalid(
            f'{HEADER} must have 1 to 255 printable ASCII characters and no spaces.'
        )
    return Key(_digest(caller.project_id, caller.user_id, header), _digest(*asked))


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def once(database: db.Database, key: Key, handle: Callable[[], Answer]) -> Answer:
    """The answer to a request with a key: what it was given before, or what `handle` makes of it.

    Raises Unprocessable if the key belongs to another request, Conflict while this process works on
    the first one."""
    with _claimed(key):
        receipt = db.find_receipt(database, key.digest)
        if receipt is None:
            try:
                return handle()
            except (errors.Repeated, errors.HttpError):
                # What the first one did may be why this is refused: the name is taken, the tag
                # stale, the quota full.
                receipt = db.find_receipt(database, key.digest)
                if receipt is None:
                    raise
        return _again(receipt, key)


def _again(receipt: models.Receipt, key: Key) -> Answer:
    if receipt.fingerprint != key.fingerprint:
        raise errors.Unprocessable(
            f'This {HEADER} was used for another request. Make a new key for each request, and '
            'repeat a request as it was: address, body and version.'
        )
    return Answer(receipt.body, receipt.headers)


@contextlib.contextmanager
def _claimed(key: Key) -> Iterator[None]:
    with _lock:
        if key.digest in _running:
            raise errors.Conflict(
                f'A request with this {HEADER} is still being carried out. '
                'Send it again for its answer.'
            )
        _running.add(key.digest)
    try:
        yield
    finally:
        with _lock:
            _running.discard(key.digest)
