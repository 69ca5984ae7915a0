"""Where the private keys of clusters rest. Only conductors use this: an API process never sees one.

Backend `database`: each key is a row of `cluster_keys`, encrypted with Fernet (AES-128-CBC and
HMAC-SHA256) under the keys of `[keystore] key_file`, newest first, so that a new line can be put on
top while old rows stay readable. The cluster and the purpose are encrypted along: a row moved to
another cluster does not open."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

from cryptography import fernet
from oslo_config import cfg
from sqlalchemy import orm

from magnum_lite import certs, db, models

BACKEND = 'database'
#: Purpose of what is no key of a driver: the password of the user that a cluster has in the cloud.
#: What may be shown of it is the user's id, '' until it is known.
CLOUD_USER = 'cloud-user'


class KeyStoreError(Exception):
    """The key file cannot be used, or a key does not open. The text says which and what to do."""


def new_key() -> str:
    """A line for the key file."""
    return fernet.Fernet.generate_key().decode()


def create_key_file(path: str) -> bool:
    """Make a key file that only its owner can read, unless there is one. Returns whether it was
    made."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(handle, 'w') as f:
        f.write(new_key() + '\n')
    return True


class KeyStore:
    """Private keys, by cluster and purpose."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        """Read the key file. Raises KeyStoreError with what to do when it is missing, open to
        others or malformed."""
        path = conf.keystore.key_file
        try:
            if os.stat(path).st_mode & 0o077:
                raise KeyStoreError(
                    f'[keystore] key_file {path} may be read by others than its owner. '
                    f'Run: chmod 600 {path}'
                )
            lines = pathlib.Path(path).read_text().split()
            self._cipher = fernet.MultiFernet([fernet.Fernet(line) for line in lines])
        except OSError as e:
            raise KeyStoreError(
                f'[keystore] key_file cannot be read: {e}. Make one with: '
                f'(umask 077; magnum-lite keystore-key > {path})'
            ) from e
        except ValueError as e:
            raise KeyStoreError(
                f'[keystore] key_file {path} must hold one Fernet key a line, as magnum-lite '
                'keystore-key prints them'
            ) from e

    def put(
        self,
        session: orm.Session,
        cluster_id: str,
        purpose: str,
        pair: certs.Pair,
        *,
        is_next: bool = False,
    ) -> None:
        """Store a new pair in the caller's transaction; `is_next`: beside the one that it is to
        replace."""
        sealed = self._cipher.encrypt(
            json.dumps([cluster_id, purpose, pair.private_key]).encode()
        ).decode()
        session.add(
            models.Key(
                cluster_id=cluster_id,
                purpose=purpose,
                is_next=is_next,
                certificate=pair.certificate,
                private_key=sealed,
                backend=BACKEND,
            )
        )

    def open(self, key: models.Key) -> certs.Pair:
        """Decrypt one pair. Raises KeyStoreError if no key of the key file opens it, or it belongs
        elsewhere."""
        try:
            cluster_id, purpose, private_key = json.loads(
                self._cipher.decrypt(key.private_key.encode())
            )
        except fernet.InvalidToken as e:
            raise KeyStoreError(
                f'The key {key.purpose} of cluster {key.cluster_id} does not open with any key of '
                '[keystore] key_file. Put the key it was made with back into that file.'
            ) from e
        if (cluster_id, purpose) != (key.cluster_id, key.purpose):
            raise KeyStoreError(
                f'The key {key.purpose} of cluster {key.cluster_id} was made for another one.'
            )
        return certs.Pair(key.certificate, private_key)

    def load(self, database: db.Database, cluster: models.Cluster) -> dict[str, certs.Pair]:
        """The pairs of a cluster by purpose; the phase of its rotation says who signs and who is
        trusted beside."""
        pairs: dict[str, certs.Pair] = {}
        for key in db.list_keys(database, cluster.uuid):
            pair, other = self.open(key), pairs.get(key.purpose)
            if other is None:
                pairs[key.purpose] = pair
            elif cluster.rotation_phase == 1:
                pairs[key.purpose] = dataclasses.replace(other, beside=pair.certificate)
            elif cluster.rotation_phase == 2:
                pairs[key.purpose] = dataclasses.replace(pair, beside=other.certificate)
            elif cluster.rotation_phase == 3:
                pairs[key.purpose] = pair
        return pairs
