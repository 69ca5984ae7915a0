"""Every exception of this project, with the HTTP status and the title that a client gets.

    HttpError            what an API call can end with; `code` is the status
      Invalid 400   Forbidden 403   OverQuota 403   NotFound 404   MethodNotAllowed 405
      NotAcceptable 406   Conflict 409   PreconditionFailed 412
      TooLarge 413   UnsupportedMediaType 415
      Unprocessable 422   Unavailable 503
    Repeated             another process has carried out the same request at the same time
    Retry                in a conductor: nothing is wrong, look at the cluster again later
    Failed               in a conductor: the operation has failed, and trying again will not help
    LeaseLost            in a conductor: another one holds this cluster now, so drop the work
    DriverError          a driver folder is invalid (an operator reads this)

Any module may raise these; this one imports no other of the project. A message says what happened,
to which object, and what to do next. Its first sentence has no dot inside, because clients show the
text up to the first dot as the title."""

from __future__ import annotations

from dataclasses import dataclass

#: Values of `operations.code` for an operation that failed, each with its explanation to a user.
CODES = {
    'NO_VALID_HOST': 'No compute host has room for a server of this flavor',
    'QUOTA_EXCEEDED': 'A quota of the project does not allow this cluster',
    'NODE_FAILED': 'A node reported that it could not set itself up',
    'NODE_TIMEOUT': 'A node did not report in time',
    'IMAGE_NOT_FOUND': 'The image is gone or not readable',
    'NETWORK': 'A network, port, router or floating IP could not be made',
    'LOADBALANCER': 'A load balancer could not be made',
    'STACK_LIMIT': 'The stack is larger than Heat allows',
    'STACK_GONE': 'The stack was deleted by somebody else',
    'TIMEOUT': 'It took longer than it may',
    'CANCELLED': 'It was stopped on request',
    'IN_USE': 'Something in the cloud still uses what is to be deleted',
    'PROJECT_GONE': 'The project is disabled or gone, so nothing can be done in it',
    'CLOUD_UNAVAILABLE': 'A cloud service could not be reached in time',
    'INTERNAL': 'The service made a mistake, and its log has the details',
}


class HttpError(Exception):
    """An error response. `str()` of it is the whole text, and `code` the HTTP status."""

    code = 500

    @property
    def title(self) -> str:
        """The first sentence, without its dot."""
        return str(self).split('. ', 1)[0].rstrip('.')


class Invalid(HttpError):
    """The request is invalid, whatever the state of the cluster. The text lists all problems."""

    code = 400


class Forbidden(HttpError):
    """The caller may see the object but may not do this to it."""

    code = 403


class OverQuota(HttpError):
    """The quota of the project is used up."""

    code = 403


class NotFound(HttpError):
    """The object does not exist, or the caller must not learn that it does."""

    code = 404


class MethodNotAllowed(HttpError):
    """The path exists, but not for this method. `allowed` goes into the `Allow` header."""

    code = 405

    def __init__(self, allowed: list[str]) -> None:
        super().__init__('')
        self.allowed = allowed


class NotAcceptable(HttpError):
    """The caller asks for a microversion or a content type that is not offered."""

    code = 406


class Conflict(HttpError):
    """The state of the object does not allow the request, or several objects have the name."""

    code = 409


class PreconditionFailed(HttpError):
    """The object has changed since the caller read it (`If-Match`)."""

    code = 412


class TooLarge(HttpError):
    """The body is larger than the limit."""

    code = 413


class UnsupportedMediaType(HttpError):
    """The body is not declared as JSON."""

    code = 415


class Unprocessable(HttpError):
    """The `Idempotency-Key` belongs to another request of the same user."""

    code = 422


class Unavailable(HttpError):
    """A service that is needed does not respond. The same request may succeed later."""

    code = 503


class Repeated(Exception):
    """A request with the same `Idempotency-Key` was committed first, so this one is rolled back."""


@dataclass(eq=False)
class Retry(Exception):
    """Nothing is wrong: look at the cluster again in `delay_s` seconds.

    Only the due time of the row changes."""

    delay_s: float


class Failed(Exception):
    """The operation cannot succeed. `code` is a key of `CODES`; the text is for the user."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class LeaseLost(Exception):
    """Another conductor holds the cluster, or the cluster has changed: write nothing more."""


class DriverError(Exception):
    """A driver folder cannot be loaded or rendered. The text names folder and place."""
