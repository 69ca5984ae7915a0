"""Every exception of this project, with the HTTP status it becomes and the title a caller reads.

    HttpError            what an API call can end with; `code` is the status
      Invalid 400   Forbidden 403   OverQuota 403   NotFound 404   MethodNotAllowed 405
      NotAcceptable 406   Conflict 409   PreconditionFailed 412
      TooLarge 413   UnsupportedMediaType 415
      Unprocessable 422   Unavailable 503
    Repeated             the request was carried out already, by another process at the same time
    Retry                the conductor: the world is not ready, look again later
    Failed               the conductor: this will not get better, the operation has failed
    LeaseLost            the conductor: another one holds this cluster now, drop the work
    DriverError          a driver folder is not what it should be (an operator reads this)

Nothing here imports anything of ours. A message says what happened, to which thing, and what to do
next; its first sentence has no dot inside, because clients show the text up to the first dot as the
title."""

from __future__ import annotations

#: What `operations.code` can hold when an operation failed, with the sentence that explains it to a
#: user.
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
    """An answer other than success. `str()` of it is the whole text; `code` is the HTTP status, an
    int."""

    code = 500

    @property
    def title(self) -> str:
        """The first sentence, without its dot."""
        return str(self).split('. ', 1)[0].rstrip('.')


class Invalid(HttpError):
    """The request is wrong in itself. `problems` may hold several sentences; each is a finding of
    the same look."""

    code = 400


class Forbidden(HttpError):
    """The caller may see the thing but not do this to it."""

    code = 403


class OverQuota(HttpError):
    """The project has all it may have."""

    code = 403


class NotFound(HttpError):
    """It is not there, or the caller may not know that it is."""

    code = 404


class MethodNotAllowed(HttpError):
    """The path exists, the method does not. `allowed` goes into the `Allow` header."""

    code = 405

    def __init__(self, allowed: list[str]) -> None:
        super().__init__('')
        self.allowed = allowed


class NotAcceptable(HttpError):
    """The caller wants a microversion or a content type that is not offered."""

    code = 406


class Conflict(HttpError):
    """It makes no sense in the state the thing is in, or the name fits more than one."""

    code = 409


class PreconditionFailed(HttpError):
    """The thing is not any more what the caller believes it to be (`If-Match`)."""

    code = 412


class TooLarge(HttpError):
    """A body that is larger than we read."""

    code = 413


class UnsupportedMediaType(HttpError):
    """A body that does not say it is JSON."""

    code = 415


class Unprocessable(HttpError):
    """An `Idempotency-Key` that belongs to another request of the same user."""

    code = 422


class Unavailable(HttpError):
    """Something we need is away; the same request may succeed later."""

    code = 503


class Repeated(Exception):
    """A request with the same `Idempotency-Key` was committed first. Nothing of this one is
    stored."""


class Retry(Exception):
    """Nothing is wrong: look at the cluster again in `delay_s` seconds.

    Only the due time of the row changes.
    """

    def __init__(self, delay_s: float) -> None:
        super().__init__(f'again in {delay_s:.1f} s')
        self.delay_s = delay_s


class Failed(Exception):
    """The operation cannot succeed. `code` is a key of `CODES`, the text is what the user reads."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class LeaseLost(Exception):
    """Another conductor holds the cluster, or the cluster moved on: whatever was being done must
    not be written."""


class DriverError(Exception):
    """A driver folder cannot be loaded or rendered. The text names the folder and the place in
    it."""
