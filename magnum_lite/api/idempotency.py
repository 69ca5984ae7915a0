"""`Idempotency-Key`: a repeated request is carried out once and gets the first one's answer.

`app` calls `make_key` and `run_once` around the handler. The answer is a row (`models.Receipt`)
that the handler has `db` write in the transaction that carries the request out
(`changes.make_receipt`). So neither is ever stored without the other: if the process dies between
the commit and the answer, the repetition finds the row. Of two requests at the same time, the
second to commit finds the first one's receipt, stores nothing, and gives that answer. Before that,
a process that still works on the first answers 409 to the second.

A refused request has no receipt: nothing was done, so the same key may be used again. A receipt is
kept for 24 hours (`changes.RECEIPT_LIFE`)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

from magnum_lite import context, db, errors, models
from magnum_lite.api.request import Answer, Key

HEADER = 'Idempotency-Key'
#: The form of the header.
PATTERN = r'^[!-~]{1,255}$'
#: Digests of the keys of the requests that this process carries out now.
_running: set[str] = set()
_lock = threading.Lock()


def make_key(header: str, caller: context.Caller, *request: Any) -> Key:
    """The key of a request, from the header and all that tells this request from another.

    Raises Invalid for a header of the wrong form."""
    if not re.fullmatch(PATTERN, header):
        raise errors.Invalid(
            f'{HEADER} must have 1 to 255 printable ASCII characters and no spaces.'
        )
    return Key(_hash(caller.project_id, caller.user_id, header), _hash(*request))


def _hash(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def run_once(database: db.Database, key: Key, handle: Callable[[], Answer]) -> Answer:
    """The stored answer to a request with this key, or else what `handle` answers.

    Raises Unprocessable if the key belongs to another request, Conflict while this process carries
    out the first one."""
    with _claim_key(key):
        receipt = db.find_receipt(database, key.digest)
        if receipt is None:
            try:
                return handle()
            except (errors.Repeated, errors.HttpError):
                # The first request may be why this one is refused: it took the name or the quota,
                # or changed the tag.
                receipt = db.find_receipt(database, key.digest)
                if receipt is None:
                    raise
        return _replay_answer(receipt, key)


def _replay_answer(receipt: models.Receipt, key: Key) -> Answer:
    if receipt.fingerprint != key.fingerprint:
        raise errors.Unprocessable(
            f'This {HEADER} was used for another request. Make a new key for each request, and '
            'repeat a request as it was: address, body and version.'
        )
    return Answer(receipt.body, receipt.headers)


@contextlib.contextmanager
def _claim_key(key: Key) -> Iterator[None]:
    """Hold the key in this process. Raises Conflict if another thread holds it."""
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
