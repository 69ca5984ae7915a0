"""Microversions: what each one changed, and which one a request uses.

`app` calls `negotiate` for each request. Handlers and field tables compare its result with the
constants. Only the minor number varies; the major is 1. A request without the header uses 1.1."""

from __future__ import annotations

import re

from magnum_lite import errors

#: Minor number -> what changed for clients. `latest` means the newest. The numbers between are not
#: offered.
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
    100: 'magnum-lite\'s own: `error_code` on clusters and nodegroups, `description` on clusters.',
}
MINIMUM, MAXIMUM = min(VERSIONS), max(VERSIONS)

# The versions that the code compares with, by what they brought.
ROLLBACK = 3
RESIZE = 7
UPGRADE = 8
NODEGROUPS = 9
ZERO_NODES = 10
CREDENTIALS = 12
CLUSTER_ID = 13
#: What Magnum does not have. Its own versions will not come so far.
EXTENSIONS = 100

HEADER = 'OpenStack-API-Version'
SERVICE = 'container-infrastructure-management'
SERVICES = ('container-infra', 'container-infrastructure', SERVICE)


class Unsupported(errors.NotAcceptable):
    """A well-formed version that is not offered. `version` is a text such as "1.99"."""

    def __init__(self, version: str) -> None:
        super().__init__(
            f'Version {version} is not supported by the API. Minimum is 1.{MINIMUM} and maximum is '
            f'1.{MAXIMUM}.'
        )
        self.version = version


def negotiate(header: str | None) -> int:
    """The minor version that a request uses.

    Raises Unsupported for a version that is not offered, NotAcceptable for a header of the wrong
    form or for another service."""
    if header is None:
        return MINIMUM
    service, _, version = header.strip().partition(' ')
    version = version.strip()
    if version == 'latest':
        return MAXIMUM
    match = re.fullmatch(r'(\d{1,4})\.(\d{1,4})', version, re.ASCII)
    if service not in SERVICES or not match:
        raise errors.NotAcceptable('')
    major = int(match[1])
    minor = int(match[2])
    if major != 1 or minor not in VERSIONS:
        raise Unsupported(f'{major}.{minor}')
    return minor
