"""Microversions: what each one changed, and how a request says which it wants.

Only the minor number varies; the major is 1. A request without the header speaks 1.1.
"""

from __future__ import annotations

import re

from magnum_lite import errors

#: Minor number -> what changed for callers. The newest is what `latest` means. Numbers between are
#: not offered.
VERSIONS = {
    1: 'The first version.',
    2: 'Bays became asynchronous. Clusters always were.',
    3: 'PATCH of a cluster takes `rollback`.',
    4: 'Statistics.',
    5: 'Rotation of certificate authorities.',
    6: 'Quotas.',
    7: 'Resize of a cluster.',
    8: 'Upgrade of a cluster.',
    9: 'Nodegroups.',
    10: 'Clusters without workers. '
    'A POST of a cluster with an unknown template is 404, before it was 400.',
    11: 'Bays and baymodels are gone.',
    12: 'Rotation of credentials.',
    13: '`cluster_id` on clusters, another name of `stack_id`.',
    14: 'Labels and taints of nodegroups.',
    100: 'magnum-lite\'s own: `error_code` on clusters and nodegroups.',
}
MINIMUM, MAXIMUM = min(VERSIONS), max(VERSIONS)

ROLLBACK, RESIZE, UPGRADE, NODEGROUPS = 3, 7, 8, 9
ZERO_NODES = 10
CREDENTIALS = 12
CLUSTER_ID = 13
ERROR_CODE = 100

HEADER = 'OpenStack-API-Version'
SERVICE = 'container-infrastructure-management'
SERVICES = ('container-infra', 'container-infrastructure', SERVICE)


class Unsupported(errors.NotAcceptable):
    """A well-formed version that is not offered. `minor` is what was asked for, as text like
    "1.99"."""

    def __init__(self, asked: str) -> None:
        super().__init__(
            f'Version {asked} is not supported by the API. Minimum is 1.{MINIMUM} and maximum is '
            f'1.{MAXIMUM}.'
        )
        self.asked = asked


def negotiate(header: str | None) -> int:
    """The minor version that a request speaks.

    Raises Unsupported for a version that is not offered, NotAcceptable for a header that makes no
    sense or is meant for another service."""
    if header is None:
        return MINIMUM
    service, _, asked = header.strip().partition(' ')
    if asked.strip() == 'latest':
        return MAXIMUM
    match = re.fullmatch(r'(\d{1,4})\.(\d{1,4})', asked.strip(), re.ASCII)
    if service not in SERVICES or not match:
        raise errors.NotAcceptable('')
    major, minor = int(match[1]), int(match[2])
    if major != 1 or minor not in VERSIONS:
        raise Unsupported(f'{major}.{minor}')
    return minor
