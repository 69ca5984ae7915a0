"""What the client libraries raise, and what it becomes. The exceptions are the libraries' own."""

from __future__ import annotations

import pytest
import requests
from heatclient import exc as heat_exc
from keystoneauth1 import exceptions as ksa_exc
from openstack import exceptions as sdk_exc

from magnum_lite import clients


def response(status: int, **headers: str) -> requests.Response:
    made = requests.Response()
    made.status_code = status
    made.headers.update(headers)
    return made


@pytest.mark.parametrize(('raised', 'becomes'), [
    (heat_exc.HTTPNotFound('{"error": {"message": "The Stack (x) could not be found."}}', 404), clients.Gone),
    (heat_exc.HTTPConflict('{"error": {"message": "The Stack (x) already exists."}}', 409), clients.Clash),
    (heat_exc.HTTPBadRequest('{"error": {"message": "Property error"}}', 400), clients.Refused),
    (heat_exc.HTTPForbidden('not JSON', 403), clients.Refused),
    (heat_exc.HTTPUnauthorized('{}', 401), clients.Away),
    (heat_exc.HTTPInternalServerError('<html>500</html>', 500), clients.Away),
    (heat_exc.HTTPServiceUnavailable('["a list"]', 503), clients.Away),
    (sdk_exc.NotFoundException('No Image found for x'), clients.Gone),
    (sdk_exc.NotFoundException('gone', response=response(404)), clients.Gone),
    (sdk_exc.DuplicateResource('More than one'), clients.Clash),
    (sdk_exc.BadRequestException('no', response=response(400)), clients.Refused),
    (sdk_exc.HttpException('too many', response=response(429)), clients.Away),
    (sdk_exc.SDKException('whatever'), clients.Away),
    (ksa_exc.NotFound('no such project'), clients.Gone),
    (ksa_exc.Conflict('taken'), clients.Clash),
    (ksa_exc.Forbidden('no'), clients.Refused),
    (ksa_exc.Unauthorized('who'), clients.Away),
    (ksa_exc.GatewayTimeout('504'), clients.Away),
    (ksa_exc.ConnectFailure('refused'), clients.Away),
    (ksa_exc.EndpointNotFound('orchestration'), clients.Away),
    (requests.ReadTimeout('slow'), clients.Away),
    (requests.JSONDecodeError('Expecting value', '<html>', 0), clients.Away),
    (KeyError('stack'), clients.Away),
])
def test_every_failure_is_one_of_four(raised: Exception, becomes: type[clients.CloudError]) -> None:
    with pytest.raises(clients.CloudError, match=r'^Doing it: ') as caught, clients._translated('Doing it'):
        raise raised

    assert type(caught.value) is becomes


def test_what_heat_says_is_passed_on() -> None:
    with pytest.raises(clients.Refused, match=r'^Doing it: Property error: x \(HTTP 400\)$'), \
            clients._translated('Doing it'):
        raise heat_exc.HTTPBadRequest('{"error": {"message": "Property error:\\n   x"}}', 400)


@pytest.mark.parametrize(('header', 'seconds'), [('7', 7.0), ('Wed, 21 Oct 2026 07:28:00 GMT', None), (None, None)])
def test_retry_after_is_heeded(header: str | None, seconds: float | None) -> None:
    headers = {'Retry-After': header} if header else {}
    with pytest.raises(clients.Away) as caught, clients._translated('Doing it'):
        raise ksa_exc.HttpError(
            'slow down', response=response(429, **headers), http_status=429)

    assert caught.value.retry_after_s == seconds


def test_what_is_already_said_stays() -> None:
    with pytest.raises(clients.Gone, match=r'^first$'), clients._translated('second'):
        raise clients.Gone('first')


def test_death_is_no_failure_of_the_cloud() -> None:
    with pytest.raises(KeyboardInterrupt), clients._translated('Doing it'):
        raise KeyboardInterrupt
