"""x509 as pure functions: authorities, key pairs, client certificates. No storage, no policy, no clock of its own
beyond "now".

Authorities and client keys are ECDSA P-256: eight such files of a control plane fit into a server's user-data, RSA
ones hardly (drivers.md 3.9). A bare key pair may be RSA, because some engines take nothing else for it.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: Clocks of nodes may run behind ours; a certificate is valid from this much before it was made.
BACKDATE = datetime.timedelta(hours=1)

ALGORITHMS = ('ecdsa-p256', 'rsa-2048')


@dataclass(frozen=True)
class Pair:
    """A private key and what may be shown of it, both PEM text.

    `certificate` is an x509 certificate, or, for a pair without one, the public key.
    """

    certificate: str
    private_key: str = field(repr=False)
    #: PEM certificates that are trusted beside this one while authorities are exchanged.
    beside: str = ''

    @property
    def trusted(self) -> str:
        """What whoever meets a certificate of this authority has to trust, as PEM."""
        return self.certificate + self.beside


def _new_key(algorithm: str) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    if algorithm == 'ecdsa-p256':
        return ec.generate_private_key(ec.SECP256R1())
    if algorithm == 'rsa-2048':
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    raise ValueError(f'unknown key algorithm {algorithm!r}, known are {", ".join(ALGORITHMS)}')


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    # The traditional forms (SEC1, PKCS#1): every release of every engine reads them.
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption()).decode()


def _builder(subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
             life: datetime.timedelta) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public_key)
            .serial_number(x509.random_serial_number()).not_valid_before(now - BACKDATE).not_valid_after(now + life)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False))


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, key_encipherment=not ca, key_cert_sign=ca, crl_sign=ca, content_commitment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False)


def make_ca(common_name: str, *, life: datetime.timedelta, algorithm: str = 'ecdsa-p256') -> Pair:
    """Make a self-signed authority that may sign leaf certificates only (path length 0)."""
    key = _new_key(algorithm)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    certificate = (_builder(name, name, key.public_key(), life)
                   .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                   .add_extension(_key_usage(ca=True), critical=True)
                   .sign(key, hashes.SHA256()))
    return Pair(certificate.public_bytes(serialization.Encoding.PEM).decode(), _pem(key))


def make_keypair(*, algorithm: str) -> Pair:
    """Make a key pair without a certificate. Raises ValueError for an algorithm that is not in `ALGORITHMS`."""
    key = _new_key(algorithm)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return Pair(public.decode(), _pem(key))


def issue_client(ca: Pair, *, common_name: str, organization: str | None, life: datetime.timedelta) -> Pair:
    """Make a client certificate, signed by `ca`, with a new key of its own. It can never sign or serve."""
    key = _new_key('ecdsa-p256')
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    authority = x509.load_pem_x509_certificate(ca.certificate.encode())
    signer = serialization.load_pem_private_key(ca.private_key.encode(), password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)  # make_ca makes no other
    certificate = (_builder(x509.Name(attributes), authority.subject, key.public_key(), life)
                   .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
                   .add_extension(_key_usage(ca=False), critical=True)
                   .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
                   .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                       authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value), critical=False)
                   .sign(signer, hashes.SHA256()))
    return Pair(certificate.public_bytes(serialization.Encoding.PEM).decode(), _pem(key))
