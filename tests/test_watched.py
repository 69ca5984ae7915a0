"""`Watched` notices what it is there for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import webob
from rows import store_template
from watched import Watch

from magnum_lite.api.request import Services


def _answering(status: int, body: Any) -> webob.Response:
    """An application that answers this."""
    return webob.Response(
        status=status,
        json_body=body,
        charset=None,
        headerlist=[('Content-Type', 'application/json'), ('x-openstack-request-id', 'req-1')],
    )


def _envelope(**changes: Any) -> dict[str, Any]:
    error = {
        'request_id': '',
        'code': 'client',
        'status': 400,
        'title': 'It is wrong',
        'detail': 'It is wrong. Mend it.',
        'links': [],
    } | changes
    return {'errors': [error], 'faultstring': error['detail']}


def test_watched_takes_a_right_answer(watch: Watch) -> None:
    response = watch(_answering(400, _envelope()))('GET', '/')

    assert response.json == _envelope()


@pytest.mark.parametrize(
    ('status', 'body'),
    [
        (400, _envelope(title='It is wrong. Mend it')),
        (400, _envelope(title='')),
        (400, _envelope(status=500)),
        (400, _envelope(code='')),
        (400, _envelope(more=1)),
        (400, _envelope() | {'faultstring': ''}),
        (400, {'errors': []}),
        (400, {'error': 'x'}),
        (200, _envelope()),
        (204, {}),
    ],
    ids=[
        'long title',
        'no title',
        'status',
        'code',
        'more',
        'faultstring',
        'empty',
        'other',
        '200',
        '204',
    ],
)
def test_watched_sees_a_wrong_answer(watch: Watch, status: int, body: Any) -> None:
    with pytest.raises((AssertionError, ValueError, KeyError)):
        watch(_answering(status, body))('GET', '/')


def test_watched_sees_what_a_refusal_stores(services: Services, watch: Watch) -> None:
    def careless(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        store_template(services.db)
        return _answering(400, _envelope())(environ, start_response)

    with pytest.raises(AssertionError, match='it was stored'):
        watch(careless)('POST', '/v1/clustertemplates')


def test_watched_sees_a_listing_that_calls_the_cloud(services: Services, watch: Watch) -> None:
    def slow(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        services.cloud.lookups(None).get_image('ubuntu')
        return _answering(200, {'clusters': []})(environ, start_response)

    with pytest.raises(AssertionError, match='the cloud was called'):
        watch(slow)('GET', '/v1/clusters')
