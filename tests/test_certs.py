"""What we sign, as openssl sees it; and the keys, as an attacker of the database would."""

from __future__ import annotations

import datetime
import os
import pathlib
import stat
import subprocess

import pytest
import sqlalchemy as sa
from conftest import Api
from oslo_config import cfg

from magnum_lite import certs, db, keystore, models

LIFE = datetime.timedelta(hours=2)


def openssl(*args: str, text: str | None = None) -> str:
    done = subprocess.run(['openssl', *args], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def ca() -> certs.Pair:
    return certs.make_ca('test-ca', life=datetime.timedelta(days=10))


def test_openssl_verifies_a_client_certificate(ca: certs.Pair, tmp_path: pathlib.Path) -> None:
    pair = certs.issue_client(ca, common_name='node', organization='nodes', life=LIFE)
    (tmp_path / 'ca.pem').write_text(ca.certificate)
    (tmp_path / 'leaf.pem').write_text(pair.certificate)

    assert 'OK' in openssl('verify', '-x509_strict', '-purpose', 'sslclient', '-CAfile', str(tmp_path / 'ca.pem'),
                           str(tmp_path / 'leaf.pem'))
    shown = openssl('x509', '-noout', '-subject', '-ext', 'basicConstraints,keyUsage,extendedKeyUsage',
                    text=pair.certificate)
    assert 'O = nodes, CN = node' in shown
    assert 'CA:FALSE' in shown and 'TLS Web Client Authentication' in shown
    assert 'Certificate Sign' not in shown and 'Server Authentication' not in shown


def test_client_certificate_cannot_sign(ca: certs.Pair, tmp_path: pathlib.Path) -> None:
    pair = certs.issue_client(ca, common_name='node', organization=None, life=LIFE)
    forged = certs.issue_client(pair, common_name='forged', organization='system:masters', life=LIFE)
    for name, text in (('ca', ca.certificate), ('mid', pair.certificate), ('leaf', forged.certificate)):
        (tmp_path / f'{name}.pem').write_text(text)

    done = subprocess.run(['openssl', 'verify', '-CAfile', 'ca.pem', '-untrusted', 'mid.pem', 'leaf.pem'],
                          cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0


def test_authority_is_p256_and_signs_leaves_only(ca: certs.Pair) -> None:
    shown = openssl('x509', '-noout', '-text', text=ca.certificate)

    assert 'CA:TRUE, pathlen:0' in shown and 'Certificate Sign' in shown and 'prime256v1' in shown
    assert 'BEGIN EC PRIVATE KEY' in ca.private_key


def test_certificate_is_valid_for_a_clock_that_is_behind(ca: certs.Pair) -> None:
    pair = certs.issue_client(ca, common_name='node', organization=None, life=LIFE)
    from cryptography import x509
    leaf = x509.load_pem_x509_certificate(pair.certificate.encode())
    now = datetime.datetime.now(datetime.UTC)

    assert leaf.not_valid_before_utc < now - datetime.timedelta(minutes=55)
    assert abs(leaf.not_valid_after_utc - now - LIFE) < datetime.timedelta(minutes=1)


@pytest.mark.parametrize(('algorithm', 'header'), [('rsa-2048', 'RSA PRIVATE KEY'), ('ecdsa-p256', 'EC PRIVATE KEY')])
def test_keypair_belongs_together(algorithm: str, header: str) -> None:
    pair = certs.make_keypair(algorithm=algorithm)

    assert header in pair.private_key
    assert openssl('pkey', '-pubout', text=pair.private_key) == pair.certificate


def test_unknown_algorithm_is_refused() -> None:
    with pytest.raises(ValueError, match='dsa-512'):
        certs.make_keypair(algorithm='dsa-512')


def test_private_key_does_not_show_in_a_log(ca: certs.Pair) -> None:
    assert 'PRIVATE' not in repr(ca)


@pytest.fixture
def store(conf: cfg.ConfigOpts) -> keystore.KeyStore:
    keystore.create_key_file(conf.keystore.key_file)
    return keystore.KeyStore(conf)


def put(store: keystore.KeyStore, database: db.Database, cluster: str, purpose: str, pair: certs.Pair) -> None:
    with database.write() as session:
        store.put(session, cluster, purpose, pair)


def test_key_comes_back_and_is_not_readable_in_the_database(
        store: keystore.KeyStore, database: db.Database, cluster: str, ca: certs.Pair) -> None:
    put(store, database, cluster, 'ca', ca)

    assert store.load(database, models.Cluster(uuid=cluster, rotation=0)) == {'ca': ca}
    with database.read() as session:
        stored = session.scalar(sa.text('SELECT private_key FROM cluster_keys'))
    assert 'PRIVATE' not in stored and ca.private_key[40:80] not in stored


def test_key_that_was_moved_to_another_purpose_does_not_open(
        store: keystore.KeyStore, database: db.Database, cluster: str, ca: certs.Pair) -> None:
    put(store, database, cluster, 'ca', ca)
    with database.write() as session:
        session.execute(sa.update(models.Key).values(purpose='etcd'))

    with pytest.raises(keystore.KeyStoreError, match='was made for another one'):
        store.load(database, models.Cluster(uuid=cluster, rotation=0))


def test_new_line_on_top_keeps_old_keys_readable(
        conf: cfg.ConfigOpts, store: keystore.KeyStore, database: db.Database, cluster: str, ca: certs.Pair) -> None:
    put(store, database, cluster, 'ca', ca)
    path = pathlib.Path(conf.keystore.key_file)
    path.write_text(f'{keystore.new_key()}\n{path.read_text()}')

    assert keystore.KeyStore(conf).load(database, models.Cluster(uuid=cluster, rotation=0)) == {'ca': ca}

    path.write_text(keystore.new_key())
    with pytest.raises(keystore.KeyStoreError, match='does not open'):
        keystore.KeyStore(conf).load(database, models.Cluster(uuid=cluster, rotation=0))


def test_key_file_is_private_and_made_once(conf: cfg.ConfigOpts) -> None:
    path = conf.keystore.key_file

    assert keystore.create_key_file(path) and not keystore.create_key_file(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    os.chmod(path, 0o644)
    with pytest.raises(keystore.KeyStoreError, match=f'chmod 600 {path}'):
        keystore.KeyStore(conf)


def test_missing_or_malformed_key_file_says_what_to_do(conf: cfg.ConfigOpts) -> None:
    with pytest.raises(keystore.KeyStoreError, match='magnum-lite keystore-key'):
        keystore.KeyStore(conf)
    path = pathlib.Path(conf.keystore.key_file)
    path.touch(0o600)
    path.write_text('not a key')
    with pytest.raises(keystore.KeyStoreError, match='one Fernet key a line'):
        keystore.KeyStore(conf)


def test_keys_go_with_the_cluster(
        store: keystore.KeyStore, database: db.Database, cluster: str, ca: certs.Pair, api: Api) -> None:
    put(store, database, cluster, 'ca', ca)
    with database.write() as session:
        db.destroy_cluster(session, session.query(models.Cluster).one())

    assert not db.list_keys(database, cluster)
