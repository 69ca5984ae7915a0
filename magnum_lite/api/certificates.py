"""Handlers of /v1/certificates."""

from __future__ import annotations

from magnum_lite import errors, models, states
from magnum_lite.api import nodegroups, request
from magnum_lite.api.request import Answer, Request


def rotate(req: Request) -> Answer:
    """Ask for all authorities of a cluster to be exchanged for new ones.

    That replaces every member three times: so that all trust the new authorities beside the old ones; so that the new
    ones sign; so that the old ones are forgotten. The cluster works meanwhile. An exchange that has failed or was
    stopped goes on where it was, with this or with any other change. Raises Invalid where the cluster cannot do it.
    """
    if req.body is not None:
        raise errors.Invalid('The exchange of authorities takes no body.')

    def change(cluster: models.Cluster) -> None:
        request.refuse(nodegroups.driver_of(req, cluster).check_rotation(cluster))
        if cluster.rotation and states.is_busy(cluster.status):
            raise errors.Conflict(f'The authorities of cluster {cluster.uuid} are being exchanged already: this is '
                                  f'phase {cluster.rotation} of {models.ROTATION_PHASES}.')
        if cluster.rotation:
            return
        cluster.rotation = 1
        for group in cluster.nodegroups:
            if group.status != states.DELETE_IN_PROGRESS:
                nodegroups.check_alive(group)
                group.epoch += 1
                nodegroups.start(group)

    return req.ask(req.path['ident'], 'rotate', change)
