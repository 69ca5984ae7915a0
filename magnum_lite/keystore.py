"""The encrypted store of the private keys of clusters. Used by conductors, the doctor and the CLI.

An API process must not open it: it never sees a private key.

Backend `database`: each key is a row of `cluster_keys`, encrypted with Fernet (AES-128-CBC and
HMAC-SHA256) under the keys of `[keystore] key_file`. The newest key is the first line, so a new
line can be put on top while old rows stay readable. Cluster and purpose are encrypted with the key:
a row that was moved to another cluster does not decrypt."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping

from cryptography import fernet
from oslo_config import cfg
from sqlalchemy import orm

from magnum_lite import certs, db, models

BACKEND = 'database'
#: Purpose of the one row that is no key of a driver: the password of the user that a cluster has in
#: the cloud. Its public part is the id of the user, '' until that is known.
CLOUD_USER = 'cloud-user'


class KeyStoreError(Exception):
    """The key file is unusable, or a key does not decrypt. The text says which and what to do."""


def generate_key() -> str:
    """Generate a line for the key file."""
    return fernet.Fernet.generate_key().decode()


def create_key_file(path: str) -> bool:
    """Create a key file that only its owner can read, unless it exists. Returns whether created."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(handle, 'w') as f:
        f.write(generate_key() + '\n')
    return True


class KeyStore:
    """Private keys, by cluster and purpose."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        """Read the key file.

        Raises KeyStoreError, saying what to do, if the file is missing, readable by others or
        malformed."""
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

    def store_pairs(
        self,
        session: orm.Session,
        cluster_id: str,
        pairs: Mapping[tuple[str, bool], certs.Pair],
    ) -> None:
        """Store new pairs by purpose and `is_next`, as `store_pair` does one."""
        for (purpose, is_next), pair in pairs.items():
            self.store_pair(session, cluster_id, purpose, pair, is_next=is_next)

    def store_pair(
        self,
        session: orm.Session,
        cluster_id: str,
        purpose: str,
        pair: certs.Pair,
        *,
        is_next: bool = False,
    ) -> None:
        """Encrypt and store a new pair in the caller's transaction.

        `is_next`: beside the pair of its purpose that it will replace when a rotation ends."""
        plaintext = json.dumps([cluster_id, purpose, pair.private_key])
        session.add(
            models.Key(
                cluster_id=cluster_id,
                purpose=purpose,
                is_next=is_next,
                certificate=pair.certificate,
                private_key=self._cipher.encrypt(plaintext.encode()).decode(),
                backend=BACKEND,
            )
        )

    def decrypt(self, key: models.Key) -> certs.Pair:
        """Decrypt one row.

        Raises KeyStoreError if no key of the key file decrypts it, or if it was encrypted for
        another cluster or purpose."""
        try:
            plaintext = self._cipher.decrypt(key.private_key.encode())
        except fernet.InvalidToken as e:
            raise KeyStoreError(
                f'The key {key.purpose} of cluster {key.cluster_id} does not open with any key of '
                '[keystore] key_file. Put the key it was made with back into that file.'
            ) from e
        cluster_id, purpose, private_key = json.loads(plaintext)
        if (cluster_id, purpose) != (key.cluster_id, key.purpose):
            raise KeyStoreError(
                f'The key {key.purpose} of cluster {key.cluster_id} was made for another one.'
            )
        return certs.Pair(key.certificate, private_key)

    def load_pairs(self, database: db.Database, cluster: models.Cluster) -> dict[str, certs.Pair]:
        """Load and decrypt the pairs of a cluster, by purpose.

        While its authorities are rotated there are two of a purpose. The phase decides which one
        signs, and whether the other one is trusted as well (`certs.Pair.beside`)."""
        pairs: dict[str, certs.Pair] = {}
        for key in db.list_keys(database, cluster.uuid):
            pair = self.decrypt(key)
            current = pairs.get(key.purpose)
            # The next pair of a purpose is listed after the current one.
            if current is None or cluster.rotation_phase == 3:
                pairs[key.purpose] = pair
            elif cluster.rotation_phase == 1:
                pairs[key.purpose] = dataclasses.replace(current, beside=pair.certificate)
            elif cluster.rotation_phase == 2:
                pairs[key.purpose] = dataclasses.replace(pair, beside=current.certificate)
        return pairs
