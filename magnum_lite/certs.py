"""x509 as pure functions: authorities, key pairs, client certificates. No storage, no policy, no
clock of its own beyond "now".

Authorities and client keys are ECDSA P-256: eight such files of a control plane fit into a server's
user-data, RSA ones hardly (drivers.md 3.9). A bare key pair may be RSA, because some engines take
nothing else for it."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

from cryptography import exceptions, x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: Clocks of nodes may run behind ours; a certificate is valid from this much before it was made.
BACKDATE = datetime.timedelta(hours=1)

ALGORITHMS = ('ecdsa-p256', 'rsa-2048')

#: What is signed for others. Characters of a request: one of RSA-8192 with long names needs 4,000.
#: Bits of RSA: fewer are weak, more are slow to check. Digests: NIST SP 800-131A forbids older
#: ones.
MAX_REQUEST = 16384
RSA_BITS = range(2048, 8192 + 1)
CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
DIGESTS = (hashes.SHA256, hashes.SHA384, hashes.SHA512)

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey


class InvalidRequest(ValueError):
    """A request for a certificate that is not signed. The text is a sentence that says why."""


@dataclass(frozen=True)
class Pair:
    """A private key and what may be shown of it, both PEM text.

    `certificate` is an x509 certificate, or, for a pair without one, the public key or the request
    for one."""

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
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode()


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: PublicKey, life: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_encipherment=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def make_ca(common_name: str, *, life: datetime.timedelta, algorithm: str = 'ecdsa-p256') -> Pair:
    """Make a self-signed authority that may sign leaf certificates only (path length 0)."""
    key = _new_key(algorithm)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    certificate = (
        _builder(name, name, key.public_key(), life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Pair(certificate.public_bytes(serialization.Encoding.PEM).decode(), _pem(key))


def make_keypair(*, algorithm: str) -> Pair:
    """Make a key pair without a certificate. Raises ValueError for an algorithm that is not in
    `ALGORITHMS`."""
    key = _new_key(algorithm)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return Pair(public.decode(), _pem(key))


def _client_name(common_name: str, organization: str | None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _sign_client(
    ca: Pair,
    subject: x509.Name,
    public_key: PublicKey,
    life: datetime.timedelta,
    names: x509.Extension[x509.SubjectAlternativeName] | None = None,
) -> x509.Certificate:
    authority = x509.load_pem_x509_certificate(ca.certificate.encode())
    signer = serialization.load_pem_private_key(ca.private_key.encode(), password=None)
    assert isinstance(
        signer, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    )  # make_ca makes no other
    builder = (
        _builder(subject, authority.subject, public_key, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
    )
    if names is not None:
        builder = builder.add_extension(names.value, critical=names.critical)
    return builder.sign(signer, hashes.SHA256())


def issue_client(
    ca: Pair, *, common_name: str, organization: str | None, life: datetime.timedelta | None
) -> Pair:
    """Make a client certificate, signed by `ca`, with a new key of its own. It can never sign or
    serve.

    Without `life` it ends with `ca`.
    """
    key = _new_key('ecdsa-p256')
    certificate = _sign_client(
        ca, _client_name(common_name, organization), key.public_key(), life or _left(ca)
    )
    return Pair(certificate.public_bytes(serialization.Encoding.PEM).decode(), _pem(key))


def _left(ca: Pair) -> datetime.timedelta:
    """How long an authority is still valid."""
    end = x509.load_pem_x509_certificate(ca.certificate.encode()).not_valid_after_utc
    return end - datetime.datetime.now(datetime.UTC)


# -- requests --------------------------------------------------------------------------------------


def make_request(*, common_name: str, organization: str) -> Pair:
    """Make a key, and the request (PKCS#10, PEM) for a client certificate for it."""
    key = _new_key('ecdsa-p256')
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_client_name(common_name, organization))
        .sign(key, hashes.SHA256())
    )
    return Pair(request.public_bytes(serialization.Encoding.PEM).decode(), _pem(key))


@dataclass(frozen=True)
class Issued:
    """A certificate that was signed on request: PEM, its serial number in hex, whose it is, when it
    ends."""

    pem: str
    serial: str
    subject: str
    until: datetime.datetime


def sign_request(
    ca: Pair, text: str, *, life: datetime.timedelta, takes_ed25519: bool = False
) -> Issued:
    """Sign a request for a client certificate, which can never sign or serve and does not outlive
    `ca`.

    Subject, public key and alternative names are the request's, all else is ours. Raises
    InvalidRequest as `read_request`."""
    request = read_request(text, takes_ed25519=takes_ed25519)
    key = request.public_key()
    assert isinstance(key, PublicKey)  # read_request lets no other through
    names = next(
        (e for e in request.extensions if isinstance(e.value, x509.SubjectAlternativeName)), None
    )
    made = _sign_client(ca, request.subject, key, min(life, _left(ca)), names)
    return Issued(
        made.public_bytes(serialization.Encoding.PEM).decode(),
        f'{made.serial_number:x}',
        made.subject.rfc4514_string(),
        made.not_valid_after_utc,
    )


def read_request(text: str, *, takes_ed25519: bool = False) -> x509.CertificateSigningRequest:
    """Read and check a request for a certificate (PKCS#10, PEM).

    Raises InvalidRequest if it cannot be read, is too large, is not signed with its own key, has a
    weak key or digest, or wants by a critical extension what is not given: to be an authority, or
    to be used for anything but as a client. What it wants by other extensions is not looked at."""
    if len(text) > MAX_REQUEST:
        raise InvalidRequest(f'The csr has {len(text)} characters and may have {MAX_REQUEST}')
    try:
        request = x509.load_pem_x509_csr(text.encode())
        problem = _problem_of_key(request, takes_ed25519) or '; '.join(
            filter(None, map(_problem_of, request.extensions))
        )
        if not problem and not request.is_signature_valid:
            problem = 'it is not signed with the key that it names'
    except (
        ValueError,
        TypeError,
        exceptions.UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as e:
        raise InvalidRequest(
            'The csr cannot be read. It must be one PKCS#10 request in PEM, as `openssl req -new` '
            'makes it'
        ) from e
    if problem:
        raise InvalidRequest(f'The csr is not signed: {problem}')
    return request


def _problem_of_key(request: x509.CertificateSigningRequest, takes_ed25519: bool) -> str:
    """What is too weak, or strange, about the key or the signature; '' if nothing is."""
    key, digest = request.public_key(), request.signature_hash_algorithm
    if isinstance(key, ed25519.Ed25519PublicKey) and takes_ed25519:
        return ''
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size not in RSA_BITS:
            return (
                f'its RSA key has {key.key_size} bits, and must have {RSA_BITS[0]} to '
                f'{RSA_BITS[-1]}'
            )
    elif not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, CURVES):
        return (
            'its key must be RSA or ECDSA with P-256, P-384 or '
            f'P-521{" or Ed25519" if takes_ed25519 else ""}'
        )
    if not isinstance(digest, DIGESTS):
        return (
            f'its digest is {digest.name if digest else "unknown"}, and must be SHA-256, SHA-384 '
            'or SHA-512'
        )
    return ''


def _problem_of(extension: x509.Extension[x509.ExtensionType]) -> str:
    """What is wanted by a critical extension and not given; '' if nothing is."""
    value = extension.value
    if isinstance(value, x509.BasicConstraints):
        given = not value.ca
    elif isinstance(value, x509.KeyUsage):
        given = not (
            value.key_cert_sign or value.crl_sign or value.data_encipherment or value.key_agreement
        )
    elif isinstance(value, x509.ExtendedKeyUsage):
        given = set(value) <= {ExtendedKeyUsageOID.CLIENT_AUTH}
    else:
        given = isinstance(value, x509.SubjectAlternativeName)
    return (
        ''
        if given or not extension.critical
        else (
            f'its critical extension {extension.oid.dotted_string} asks for more than a client '
            'certificate'
        )
    )
