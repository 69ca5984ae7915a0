"""Certificates as pure functions: authorities, key pairs, client certificates, signing requests.

Conductors make and sign. The API makes and reads requests; `api.offline` also makes pairs that are
thrown away. Nothing here stores a key, decides who may have a certificate, or reads a clock but for
"now": `keystore` stores, `conductor.endpoint` and `api.certificates` decide.

Authorities and client keys are ECDSA P-256: eight such files of a control plane fit into the
user-data of a server, which RSA ones hardly do. A bare key pair may be RSA, because some engines
accept nothing else for it."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

from cryptography import exceptions, x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: A certificate is valid from this long before it is made, since clocks of nodes may be slow.
BACKDATE = datetime.timedelta(hours=1)

ALGORITHMS = ('ecdsa-p256', 'rsa-2048')

#: Characters of a request for a certificate. One of RSA-8192 with long names needs 4,000.
MAX_REQUEST = 16384
#: Sizes of RSA keys that are signed: smaller ones are weak, larger ones are slow to verify.
RSA_BITS = range(2048, 8192 + 1)
#: Elliptic curves that are signed.
CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
#: Digests that a request may be signed with. NIST SP 800-131A forbids older ones.
DIGESTS = (hashes.SHA256, hashes.SHA384, hashes.SHA512)

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey


class InvalidRequest(ValueError):
    """A request for a certificate is rejected. The text is a sentence that says why."""


@dataclass(frozen=True)
class Pair:
    """A private key and its public side, both as PEM text.

    `certificate` is an x509 certificate. For a pair that has none it is the public key, or the
    request for a certificate."""

    certificate: str
    private_key: str = field(repr=False)
    #: Further PEM certificates to trust, while an authority is being replaced.
    beside: str = ''

    @property
    def trusted(self) -> str:
        """The certificates, as PEM, that a peer of this authority's certificates must trust."""
        return self.certificate + self.beside


def _generate_key(algorithm: str) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    if algorithm == 'ecdsa-p256':
        return ec.generate_private_key(ec.SECP256R1())
    if algorithm == 'rsa-2048':
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    raise ValueError(f'unknown key algorithm {algorithm!r}, known are {", ".join(ALGORITHMS)}')


def _make_pair(
    public: x509.Certificate | x509.CertificateSigningRequest,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
) -> Pair:
    return Pair(public.public_bytes(serialization.Encoding.PEM).decode(), _encode_key(key))


def _encode_key(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    # The traditional forms (SEC1, PKCS#1), which every release of every engine reads.
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode()


def _begin_certificate(
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


def _make_key_usage(*, ca: bool) -> x509.KeyUsage:
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
    """Make a self-signed authority that can only sign leaf certificates (path length 0)."""
    key = _generate_key(algorithm)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    certificate = (
        _begin_certificate(name, name, key.public_key(), life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_make_key_usage(ca=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _make_pair(certificate, key)


def make_keypair(*, algorithm: str) -> Pair:
    """Make a key pair without a certificate.

    Raises ValueError for an algorithm that is not in `ALGORITHMS`."""
    key = _generate_key(algorithm)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return Pair(public.decode(), _encode_key(key))


def _make_client_name(common_name: str, organization: str | None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _sign_client(
    ca: Pair,
    subject: x509.Name,
    public_key: PublicKey,
    life: datetime.timedelta,
    alternative_names: x509.Extension[x509.SubjectAlternativeName] | None = None,
) -> x509.Certificate:
    authority = x509.load_pem_x509_certificate(ca.certificate.encode())
    signer = serialization.load_pem_private_key(ca.private_key.encode(), password=None)
    # make_ca makes no other.
    assert isinstance(signer, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    builder = (
        _begin_certificate(subject, authority.subject, public_key, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_make_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
    )
    if alternative_names is not None:
        builder = builder.add_extension(
            alternative_names.value, critical=alternative_names.critical
        )
    return builder.sign(signer, hashes.SHA256())


def issue_client(
    ca: Pair, *, common_name: str, organization: str | None, life: datetime.timedelta | None
) -> Pair:
    """Make a client certificate with a new key, signed by `ca`.

    It can neither sign nor identify a server. With `life` None it expires with `ca`."""
    key = _generate_key('ecdsa-p256')
    certificate = _sign_client(
        ca,
        _make_client_name(common_name, organization),
        key.public_key(),
        life or _get_remaining_life(ca),
    )
    return _make_pair(certificate, key)


def _get_remaining_life(ca: Pair) -> datetime.timedelta:
    """Return how long an authority is still valid."""
    end = x509.load_pem_x509_certificate(ca.certificate.encode()).not_valid_after_utc
    return end - datetime.datetime.now(datetime.UTC)


# -- requests --------------------------------------------------------------------------------------


def make_request(*, common_name: str, organization: str) -> Pair:
    """Make a key, and a request (PKCS#10, PEM) for a client certificate for it."""
    key = _generate_key('ecdsa-p256')
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_make_client_name(common_name, organization))
        .sign(key, hashes.SHA256())
    )
    return _make_pair(request, key)


@dataclass(frozen=True)
class Issued:
    """A certificate that was signed on request.

    `serial` is in hex, `subject` as RFC 4514 writes it, `until` the end of its validity."""

    pem: str
    serial: str
    subject: str
    until: datetime.datetime


def sign_request(
    ca: Pair, text: str, *, life: datetime.timedelta, takes_ed25519: bool = False
) -> Issued:
    """Sign a request for a client certificate.

    Subject, public key and alternative names are the request's; all else is set here. The
    certificate can neither sign nor identify a server, and does not outlive `ca`. Raises
    InvalidRequest as `read_request` does."""
    request = read_request(text, takes_ed25519=takes_ed25519)
    key = request.public_key()
    # read_request accepts no other.
    assert isinstance(key, PublicKey)
    alternative_names = None
    for extension in request.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            alternative_names = extension
    life = min(life, _get_remaining_life(ca))
    certificate = _sign_client(ca, request.subject, key, life, alternative_names)
    return Issued(
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        f'{certificate.serial_number:x}',
        certificate.subject.rfc4514_string(),
        certificate.not_valid_after_utc,
    )


def read_request(text: str, *, takes_ed25519: bool = False) -> x509.CertificateSigningRequest:
    """Read and check a request for a certificate (PKCS#10, PEM).

    Raises InvalidRequest if it cannot be read, is too large, is not signed with its own key, has a
    weak key or digest, or has a critical extension that is not granted: to be an authority, or any
    use but a client's. Extensions that are not critical are ignored."""
    if len(text) > MAX_REQUEST:
        raise InvalidRequest(f'The csr has {len(text)} characters and may have {MAX_REQUEST}')
    try:
        request = x509.load_pem_x509_csr(text.encode())
        problem = _find_key_problem(request, takes_ed25519)
        if not problem:
            problem = '; '.join(filter(None, map(_find_extension_problem, request.extensions)))
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


def _find_key_problem(request: x509.CertificateSigningRequest, takes_ed25519: bool) -> str:
    """Say what is weak or unknown about the key or the digest of a request; '' if nothing is."""
    key = request.public_key()
    digest = request.signature_hash_algorithm
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


def _find_extension_problem(extension: x509.Extension[x509.ExtensionType]) -> str:
    """Say that a critical extension asks for what is not granted; '' if it does not."""
    if not extension.critical:
        return ''
    value = extension.value
    match value:
        case x509.BasicConstraints():
            is_granted = not value.ca
        case x509.KeyUsage():
            is_granted = not (
                value.key_cert_sign
                or value.crl_sign
                or value.data_encipherment
                or value.key_agreement
            )
        case x509.ExtendedKeyUsage():
            is_granted = set(value) <= {ExtendedKeyUsageOID.CLIENT_AUTH}
        case _:
            is_granted = isinstance(value, x509.SubjectAlternativeName)
    if is_granted:
        return ''
    return (
        f'its critical extension {extension.oid.dotted_string} asks for more than a client '
        'certificate'
    )
