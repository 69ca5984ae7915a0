"""Handlers of /v1/federations, which always are an empty collection.

Called by `app` through the route table. Magnum has these addresses, but no release of it has ever
made a federation: its conductor raises NotImplementedError. These handlers refuse at once."""

from __future__ import annotations

from typing import Any

from magnum_lite import errors
from magnum_lite.api.request import Request

#: The schema of the empty listing.
NONE = {
    'type': 'object',
    'required': ['federations'],
    'properties': {'federations': {'type': 'array', 'maxItems': 0}},
}


def index(req: Request) -> dict[str, Any]:
    """List none."""
    return {'federations': []}


def create(req: Request) -> None:
    """Refuse, whatever the body says."""
    raise errors.Invalid(
        'Federations of clusters are not made here, nor has Magnum ever made one. Make the '
        'clusters one by one.'
    )


def find(req: Request) -> None:
    """What there is none of is not found."""
    raise errors.NotFound(f'Federation {req.path["ident"]} could not be found.')
