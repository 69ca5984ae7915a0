"""What we sign, as openssl sees it; and the keys, as an attacker of the database would."""

from __future__ import annotations

import datetime
import os
import pathlib
import stat
import subprocess
from typing import Any

import pytest
import sqlalchemy as sa
from conftest import Api
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from oslo_config import cfg

from magnum_lite import certs, db, keystore, models

LIFE = datetime.timedelta(hours=2)


def openssl(*args: str, text: str | None = None) -> str:
    done = subprocess.run(
        ['openssl', *args], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def ca() -> certs.Pair:
    return certs.make_ca('test-ca', life=datetime.timedelta(days=10))


def test_openssl_verifies_a_client_certificate(ca: certs.Pair, tmp_path: pathlib.Path) -> None:
    pair = certs.issue_client(ca, common_name='node', organization='nodes', life=LIFE)
    (tmp_path / 'ca.pem').write_text(ca.certificate)
    (tmp_path / 'leaf.pem').write_text(pair.certificate)

    assert 'OK' in openssl(
        'verify',
        '-x509_strict',
        '-purpose',
        'sslclient',
        '-CAfile',
        str(tmp_path / 'ca.pem'),
        str(tmp_path / 'leaf.pem'),
    )
    shown = openssl(
        'x509',
        '-noout',
        '-subject',
        '-ext',
        'basicConstraints,keyUsage,extendedKeyUsage',
        text=pair.certificate,
    )
    assert 'O = nodes, CN = node' in shown
    assert 'CA:FALSE' in shown and 'TLS Web Client Authentication' in shown
    assert 'Certificate Sign' not in shown and 'Server Authentication' not in shown


def test_client_certificate_cannot_sign(ca: certs.Pair, tmp_path: pathlib.Path) -> None:
    pair = certs.issue_client(ca, common_name='node', organization=None, life=LIFE)
    forged = certs.issue_client(
        pair, common_name='forged', organization='system:masters', life=LIFE
    )
    for name, text in (
        ('ca', ca.certificate),
        ('mid', pair.certificate),
        ('leaf', forged.certificate),
    ):
        (tmp_path / f'{name}.pem').write_text(text)

    done = subprocess.run(
        ['openssl', 'verify', '-CAfile', 'ca.pem', '-untrusted', 'mid.pem', 'leaf.pem'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0


def test_authority_is_p256_and_signs_leaves_only(ca: certs.Pair) -> None:
    shown = openssl('x509', '-noout', '-text', text=ca.certificate)

    assert 'CA:TRUE, pathlen:0' in shown and 'Certificate Sign' in shown and 'prime256v1' in shown
    assert 'BEGIN EC PRIVATE KEY' in ca.private_key


def test_certificate_is_valid_for_a_clock_that_is_behind(ca: certs.Pair) -> None:
    pair = certs.issue_client(ca, common_name='node', organization=None, life=LIFE)
    leaf = x509.load_pem_x509_certificate(pair.certificate.encode())
    now = datetime.datetime.now(datetime.UTC)

    assert leaf.not_valid_before_utc < now - datetime.timedelta(minutes=55)
    assert abs(leaf.not_valid_after_utc - now - LIFE) < datetime.timedelta(minutes=1)


@pytest.mark.parametrize(
    ('algorithm', 'header'), [('rsa-2048', 'RSA PRIVATE KEY'), ('ecdsa-p256', 'EC PRIVATE KEY')]
)
def test_public_key_of_a_pair_fits_its_private_key(algorithm: str, header: str) -> None:
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


def put(
    store: keystore.KeyStore, database: db.Database, cluster: str, purpose: str, pair: certs.Pair
) -> None:
    with database.write() as session:
        store.store_pair(session, cluster, purpose, pair)


def test_key_comes_back_and_is_not_readable_in_the_database(
    store: keystore.KeyStore, database: db.Database, cluster: str, ca: certs.Pair
) -> None:
    put(store, database, cluster, 'ca', ca)

    assert store.load_pairs(database, models.Cluster(uuid=cluster, rotation_phase=0)) == {'ca': ca}
    with database.read() as session:
        stored = session.scalar(sa.text('SELECT private_key FROM cluster_keys'))
    assert 'PRIVATE' not in stored and ca.private_key[40:80] not in stored


def test_key_that_was_moved_to_another_purpose_does_not_open(
    store: keystore.KeyStore, database: db.Database, cluster: str, ca: certs.Pair
) -> None:
    put(store, database, cluster, 'ca', ca)
    with database.write() as session:
        session.execute(sa.update(models.Key).values(purpose='etcd'))

    with pytest.raises(keystore.KeyStoreError, match='was made for another one'):
        store.load_pairs(database, models.Cluster(uuid=cluster, rotation_phase=0))


def test_new_line_on_top_keeps_old_keys_readable(
    conf: cfg.ConfigOpts,
    store: keystore.KeyStore,
    database: db.Database,
    cluster: str,
    ca: certs.Pair,
) -> None:
    put(store, database, cluster, 'ca', ca)
    path = pathlib.Path(conf.keystore.key_file)
    path.write_text(f'{keystore.generate_key()}\n{path.read_text()}')

    assert keystore.KeyStore(conf).load_pairs(
        database, models.Cluster(uuid=cluster, rotation_phase=0)
    ) == {'ca': ca}

    path.write_text(keystore.generate_key())
    with pytest.raises(keystore.KeyStoreError, match='does not open'):
        keystore.KeyStore(conf).load_pairs(database, models.Cluster(uuid=cluster, rotation_phase=0))


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
    store: keystore.KeyStore, database: db.Database, cluster: str, ca: certs.Pair, api: Api
) -> None:
    put(store, database, cluster, 'ca', ca)
    with database.write() as session:
        db.delete_cluster_row(session, session.query(models.Cluster).one())

    assert not db.list_keys(database, cluster)


# -- requests of others ----------------------------------------------------------------------------

SUBJECT = '/O=system:masters/OU=terraform/CN=admin'


def make_csr(tmp_path: pathlib.Path, *args: str, key: str = 'rsa:2048', more: str = '') -> str:
    """A request as openssl makes it; `more` are lines of its configuration."""
    (tmp_path / 'req.conf').write_text(
        f'[req]\ndistinguished_name=dn\nreq_extensions=v3\n[dn]\n[v3]\n{more}\n'
    )
    newkey = ['-newkey', *key.split()]
    return openssl(
        'req',
        '-new',
        *newkey,
        '-noenc',
        '-keyout',
        str(tmp_path / 'key.pem'),
        '-subj',
        SUBJECT,
        '-config',
        str(tmp_path / 'req.conf'),
        *args,
    )


def sign(ca: certs.Pair, csr: str, life: datetime.timedelta = LIFE) -> certs.Issued:
    return certs.sign_request(ca, csr, life=life, takes_ed25519=True)


def built(key: Any, digest: Any) -> str:
    """A request as our own library makes it."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, 'admin')])
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .sign(key, digest)
        .public_bytes(serialization.Encoding.PEM)
        .decode()
    )


@pytest.mark.parametrize(
    ('key', 'digest'),
    [
        ('rsa:2048', '-sha256'),
        ('rsa:4096', '-sha512'),
        ('ec -pkeyopt ec_paramgen_curve:P-256', '-sha256'),
        ('ec -pkeyopt ec_paramgen_curve:P-384', '-sha384'),
        ('ec -pkeyopt ec_paramgen_curve:P-521', '-sha512'),
        ('ed25519', '-sha256'),
    ],
)
def test_openssl_verifies_what_was_signed_on_request(
    ca: certs.Pair, tmp_path: pathlib.Path, key: str, digest: str
) -> None:
    csr = make_csr(tmp_path, digest, key=key)

    issued = sign(ca, csr)

    (tmp_path / 'ca.pem').write_text(ca.certificate)
    (tmp_path / 'leaf.pem').write_text(issued.pem)
    verify = ('verify', '-x509_strict', '-CAfile', str(tmp_path / 'ca.pem'))
    assert 'OK' in openssl(*verify, '-purpose', 'sslclient', str(tmp_path / 'leaf.pem'))
    with pytest.raises(AssertionError, match='purpose'):
        openssl(*verify, '-purpose', 'sslserver', str(tmp_path / 'leaf.pem'))
    shown = openssl(
        'x509',
        '-noout',
        '-subject',
        '-serial',
        '-ext',
        'basicConstraints,keyUsage,extendedKeyUsage',
        text=issued.pem,
    )
    assert 'O = system:masters, OU = terraform, CN = admin' in shown
    assert shown.lower().count(issued.serial) == 1 and 'CA:FALSE' in shown
    assert (
        'Digital Signature, Key Encipherment' in shown
        and 'TLS Web Client Authentication\n' in shown
    )
    assert openssl('x509', '-noout', '-pubkey', text=issued.pem) == openssl(
        'pkey', '-pubout', text=(tmp_path / 'key.pem').read_text()
    )


@pytest.mark.parametrize(
    ('more', 'shown'),
    [
        ('basicConstraints=CA:TRUE', 'CA:FALSE'),
        ('keyUsage=keyCertSign,cRLSign', 'Key Encipherment'),
        ('extendedKeyUsage=serverAuth,codeSigning', 'Web Client'),
        ('subjectAltName=DNS:me.example', 'DNS:me.example'),
        ('keyUsage=critical,digitalSignature,nonRepudiation', 'Digital Signature, Key'),
        ('nsComment=hello', 'CA:FALSE'),
        ('extendedKeyUsage=critical,clientAuth', 'Web Client'),
        ('basicConstraints=critical,CA:FALSE', 'CA:FALSE'),
    ],
)
def test_usages_are_ours_whatever_is_asked_for(
    ca: certs.Pair, tmp_path: pathlib.Path, more: str, shown: str
) -> None:
    text = openssl('x509', '-noout', '-text', text=sign(ca, make_csr(tmp_path, more=more)).pem)

    assert shown in text
    assert (
        'CA:FALSE' in text
        and 'Certificate Sign' not in text
        and 'Server' not in text
        and 'Comment' not in text
    )


@pytest.mark.parametrize(
    'more',
    [
        'basicConstraints=critical,CA:TRUE',
        'keyUsage=critical,keyCertSign',
        'keyUsage=critical,digitalSignature,cRLSign',
        'extendedKeyUsage=critical,clientAuth,serverAuth',
        'nameConstraints=critical,permitted;DNS:.example',
        '1.2.3.4=critical,ASN1:UTF8String:hello',
        'keyUsage=critical,keyAgreement',
    ],
)
def test_critical_extension_that_is_not_given_is_refused(
    ca: certs.Pair, tmp_path: pathlib.Path, more: str
) -> None:
    with pytest.raises(certs.InvalidRequest, match='asks for more than a client certificate'):
        sign(ca, make_csr(tmp_path, more=more))


@pytest.mark.parametrize(
    ('digest', 'name'), [('-md5', 'md5'), ('-sha1', 'sha1'), ('-sha224', 'sha224')]
)
def test_old_digest_is_refused(
    ca: certs.Pair, tmp_path: pathlib.Path, digest: str, name: str
) -> None:
    with pytest.raises(certs.InvalidRequest, match=f'its digest is {name}'):
        sign(ca, make_csr(tmp_path, digest))


def test_weak_and_strange_keys_are_refused(ca: certs.Pair) -> None:
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    with pytest.raises(certs.InvalidRequest, match='has 1024 bits, and must have 2048 to 8192'):
        sign(ca, built(small, hashes.SHA256()))
    for key in (
        ec.generate_private_key(ec.SECP256K1()),
        ec.generate_private_key(ec.SECP224R1()),
        dsa.generate_private_key(key_size=2048),
    ):
        with pytest.raises(certs.InvalidRequest, match='must be RSA or ECDSA'):
            sign(ca, built(key, hashes.SHA256()))
    with pytest.raises(certs.InvalidRequest, match='must be RSA or ECDSA'):
        certs.read_request(built(ed25519.Ed25519PrivateKey.generate(), None))


def test_request_must_be_signed_with_its_own_key(ca: certs.Pair) -> None:
    """The signature of one request under the content of another."""
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    mine = x509.load_pem_x509_csr(built(key, hashes.SHA256()).encode())
    theirs = x509.load_pem_x509_csr(built(other, hashes.SHA256()).encode())
    forged = mine.public_bytes(serialization.Encoding.DER).replace(
        mine.tbs_certrequest_bytes, theirs.tbs_certrequest_bytes
    )

    with pytest.raises(certs.InvalidRequest, match='not signed with the key that it names'):
        sign(ca, x509.load_der_x509_csr(forged).public_bytes(serialization.Encoding.PEM).decode())


def test_what_is_no_request_is_refused(ca: certs.Pair) -> None:
    good = built(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    lines = good.splitlines()
    for bad in (
        '',
        'hello',
        good[:-60],
        ca.certificate,
        ca.private_key,
        good.replace('CERTIFICATE', 'CAT'),
        '\n'.join([lines[0], lines[1][:-8] + 'AAAAAAAA', *lines[2:]]),
        '\udcff',
        '\0',
    ):
        with pytest.raises(certs.InvalidRequest):
            sign(ca, bad)
    with pytest.raises(certs.InvalidRequest, match='has 16385 characters and may have 16384'):
        sign(ca, good + '\n' * (16385 - len(good)))


def test_certificate_ends_with_its_authority(ca: certs.Pair) -> None:
    csr = built(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    end = x509.load_pem_x509_certificate(ca.certificate.encode()).not_valid_after_utc

    assert abs(sign(ca, csr, datetime.timedelta(days=9999)).until - end) <= datetime.timedelta(
        seconds=1
    )
    assert abs(sign(ca, csr).until - models.utcnow() - LIFE) < datetime.timedelta(minutes=1)


def test_own_request_holds_together_and_hides_its_key(ca: certs.Pair) -> None:
    pair = certs.make_request(common_name='user-1', organization='group-1')

    issued = sign(ca, pair.certificate)

    assert issued.subject == 'CN=user-1,O=group-1' and 'PRIVATE' not in repr(pair)
    assert openssl('x509', '-noout', '-pubkey', text=issued.pem) == openssl(
        'pkey', '-pubout', text=pair.private_key
    )
