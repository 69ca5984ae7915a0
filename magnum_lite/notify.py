"""What others may hear of clusters: CADF events (DMTF DSP0262) in the types and the shape of
Magnum.

Off unless `[oslo_messaging_notifications] driver` names one, such as messagingv2; then nothing is
made and nothing is sent. An event goes out behind the work that it tells of (`background`), so a
broker that hangs holds nobody up: while it is away events wait, and are lost if there are too many
of them or the process ends. One may come twice: `id` in its payload tells."""

from __future__ import annotations

import functools
import logging
import threading
from typing import Any

import oslo_messaging
from oslo_config import cfg
from oslo_log import log
from oslo_messaging import opts
from pycadf import attachment, cadftaxonomy, event, resource
from pycadf import reason as cadf_reason

from magnum_lite import background, config, models, outage

LOG = log.getLogger(__name__)

PENDING, SUCCESS, FAILURE = (
    cadftaxonomy.OUTCOME_PENDING,
    cadftaxonomy.OUTCOME_SUCCESS,
    cadftaxonomy.OUTCOME_FAILURE,
)
#: Magnum's name for the kind of thing that an event is about.
TYPE_URI = 'service/magnum/cluster'
GROUP = 'oslo_messaging_notifications'
#: Seconds until an event is tried again that could not be sent.
TRY_AGAIN_S = 10
#: Fields of a cluster that Magnum tells, beside its times.
FIELDS = (
    'status',
    'status_reason',
    'project_id',
    'cluster_template_id',
    'keypair',
    'docker_volume_size',
    'labels',
    'master_flavor_id',
    'flavor_id',
    'stack_id',
    'health_status',
    'create_timeout',
    'api_address',
    'discovery_url',
    'node_addresses',
    'master_addresses',
    'node_count',
    'master_count',
)


class Notifier:
    """Tells of clusters. One per process; safe for threads."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf
        self._sender = background.Sender(
            'notify',
            self._send,
            outage.Outage(
                'The broker of notifications',
                f'Up to {background.BACKLOG} notifications wait, further ones are dropped. '
                f'See [{GROUP}]',
            ),
            try_again_s=TRY_AGAIN_S,
        )

    def cluster(
        self,
        cluster: models.Cluster,
        kind: str,
        outcome: str,
        *,
        user_id: str,
        project_id: str,
        request_id: str = '',
        reason: str | None = None,
    ) -> None:
        """Tell of an operation on a cluster, whose nodegroups must be loaded. Never blocks and
        never raises.

        `kind` is that of the operation, `outcome` PENDING, SUCCESS or FAILURE; the others are of
        whoever asked for it. `reason`: a name of `errors.CODES`, or the HTTP status of a refusal,
        as text."""
        try:
            if self._is_on:
                action = (
                    kind
                    if kind in (cadftaxonomy.ACTION_CREATE, cadftaxonomy.ACTION_DELETE)
                    else 'update'
                )
                asked = {'user_id': user_id, 'project_id': project_id, 'request_id': request_id}
                self._sender.put(
                    (
                        f'magnum.cluster.{action}',
                        outcome,
                        _event(cluster, action, outcome, asked, reason),
                    )
                )
        except Exception:
            LOG.exception(
                'Cluster %s: no notification could be made of %s, %s', cluster.uuid, kind, outcome
            )

    @functools.cached_property
    def _is_on(self) -> bool:
        self._conf.register_opts(dict(opts.list_opts())[GROUP], group=GROUP)
        return bool(self._conf[GROUP].driver)

    @functools.cached_property
    def _notifier(self) -> oslo_messaging.Notifier:
        config.use_exchange()
        logging.getLogger('oslo_messaging.notify.messaging').addFilter(_failures)
        return oslo_messaging.Notifier(
            oslo_messaging.get_notification_transport(self._conf),
            f'magnum.{self._conf.host}',
            retry=0,
        )

    def _send(self, message: tuple[str, str, dict[str, Any]]) -> None:
        event_type, outcome, payload = message
        _failures.error = None
        (self._notifier.error if outcome == FAILURE else self._notifier.info)(
            {}, event_type, payload
        )
        if _failures.error is not None:
            raise _failures.error


class _Failures(logging.Filter, threading.local):
    """Catches what oslo.messaging logs instead of raising it: payload and traceback, for each
    event."""

    error: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log it: only if it is no failure to send."""
        self.error = record.exc_info[1] if record.exc_info else None
        return self.error is None


_failures = _Failures()


def _event(
    cluster: models.Cluster, action: str, outcome: str, asked: dict[str, str], reason: str | None
) -> dict[str, Any]:
    """The payload: plain values, since the row may change before they are sent."""
    times = {
        name: time and time.isoformat()
        for name, time in (('created_at', cluster.created_at), ('updated_at', cluster.updated_at))
    }
    target = resource.Resource(id=cluster.uuid, name=cluster.name, typeURI=TYPE_URI)
    target.add_attachment(
        attachment.Attachment(
            typeURI=TYPE_URI,
            name='cluster_data',
            content={name: getattr(cluster, name) for name in FIELDS} | times,
        )
    )
    # Its id is no user id: CADF wants a UUID there, and user ids of other backends are none.
    initiator = resource.Resource(typeURI=cadftaxonomy.ACCOUNT_USER)
    for name, value in asked.items():
        if value:
            setattr(initiator, name, value)
    why = cadf_reason.Reason(reasonType='magnum-lite', reasonCode=reason) if reason else None
    made: dict[str, Any] = event.Event(
        action=action,
        outcome=outcome,
        initiator=initiator,
        target=target,
        reason=why,
        observer=resource.Resource(typeURI=TYPE_URI),
    ).as_dict()
    return made
