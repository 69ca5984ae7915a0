"""Driver folders: each makes one engine on one operating system, as Heat templates.

The rest of the service, tools and a folder's own `driver.py` import names from here:

- `folders` finds, checks and loads folders (`load`), when a process starts.
- `driver` renders one folder and reads what stacks and engines answer (`Driver`), and finds the
  driver for an image (`Drivers`).
- `labels` checks what users set: fields of templates, and labels.
- `limits` compares a cluster with the limits of Heat, Nova and address ranges.

No module here knows an engine, talks to a cloud or uses the database.
"""

from magnum_lite.drivers.driver import (
    MAX_REASON,
    Access,
    CertificateSpec,
    Driver,
    Drivers,
    Health,
    HealthCheck,
    HealthRequest,
    HealthResponse,
    KeySpec,
    Observed,
    ObservedNode,
    Rendered,
    Secret,
    Signing,
    StackGroup,
    compute_node_timeout_s,
    has_cluster_users,
)
from magnum_lite.drivers.folders import BUILT_IN, load
from magnum_lite.drivers.limits import (
    MAX_USER_DATA,
    PLACEHOLDER_ROOM,
    REQUEST_OVERHEAD,
    SAMPLE_LOGIN,
)

__all__ = [
    'BUILT_IN',
    'MAX_REASON',
    'MAX_USER_DATA',
    'PLACEHOLDER_ROOM',
    'REQUEST_OVERHEAD',
    'SAMPLE_LOGIN',
    'Access',
    'CertificateSpec',
    'Driver',
    'Drivers',
    'Health',
    'HealthCheck',
    'HealthRequest',
    'HealthResponse',
    'KeySpec',
    'Observed',
    'ObservedNode',
    'Rendered',
    'Secret',
    'Signing',
    'StackGroup',
    'compute_node_timeout_s',
    'has_cluster_users',
    'load',
]
