"""Notifications about clusters for other services: CADF events (DMTF DSP0262), of Magnum's types.

The API and conductors call `Notifier.send_cluster_event` at the beginning and at the end of each
operation. It is off unless `[oslo_messaging_notifications] driver` names a driver, such as
messagingv2; then no event is built and none is sent.

Events are sent from a background thread, so a broker that hangs delays nobody. While it is down
events wait in memory. They are lost if there are too many, or if the process ends. One event may be
delivered twice: `id` in its payload identifies it."""

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

PENDING = cadftaxonomy.OUTCOME_PENDING
SUCCESS = cadftaxonomy.OUTCOME_SUCCESS
FAILURE = cadftaxonomy.OUTCOME_FAILURE
#: Magnum's type URI for the target of an event.
TYPE_URI = 'service/magnum/cluster'
GROUP = 'oslo_messaging_notifications'
#: Seconds until an event that could not be sent is sent again.
RETRY_AFTER_S = 10
#: Fields of a cluster that Magnum puts into an event, beside its times.
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
    """Sends events about clusters. One per process; safe for threads."""

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
            retry_after_s=RETRY_AFTER_S,
        )

    def send_cluster_event(
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
        """Queue an event about an operation on a cluster. Never blocks and never raises.

        The cluster's nodegroups must be loaded. `kind` is the operation's, `outcome` is PENDING,
        SUCCESS or FAILURE. User, project and request are those that asked for the operation.
        `reason`: a name of `errors.CODES`, or the HTTP status of a refusal, as text."""
        try:
            if not self._is_on:
                return
            known = (cadftaxonomy.ACTION_CREATE, cadftaxonomy.ACTION_DELETE)
            action = kind if kind in known else 'update'
            who = {'user_id': user_id, 'project_id': project_id, 'request_id': request_id}
            payload = _build_event(cluster, action, outcome, who, reason)
            self._sender.put((f'magnum.cluster.{action}', outcome, payload))
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
        logging.getLogger('oslo_messaging.notify.messaging').addFilter(_send_errors)
        return oslo_messaging.Notifier(
            oslo_messaging.get_notification_transport(self._conf),
            f'magnum.{self._conf.host}',
            retry=0,
        )

    def _send(self, message: tuple[str, str, dict[str, Any]]) -> None:
        event_type, outcome, payload = message
        send = self._notifier.error if outcome == FAILURE else self._notifier.info
        _send_errors.error = None
        send({}, event_type, payload)
        if _send_errors.error is not None:
            raise _send_errors.error


class _SendErrors(logging.Filter, threading.local):
    """Keeps the exception of a failed send. oslo.messaging does not raise it, but logs it, with the
    payload and a traceback for each event."""

    error: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a record: all but those of an exception, which `error` holds then."""
        self.error = record.exc_info[1] if record.exc_info else None
        return self.error is None


_send_errors = _SendErrors()


def _build_event(
    cluster: models.Cluster, action: str, outcome: str, who: dict[str, str], reason: str | None
) -> dict[str, Any]:
    """Build the payload, of plain values only: the row may change before the event is sent."""
    content = {name: getattr(cluster, name) for name in FIELDS}
    for name in ('created_at', 'updated_at'):
        time = getattr(cluster, name)
        content[name] = time and time.isoformat()
    target = resource.Resource(id=cluster.uuid, name=cluster.name, typeURI=TYPE_URI)
    target.add_attachment(
        attachment.Attachment(typeURI=TYPE_URI, name='cluster_data', content=content)
    )
    # The initiator's own id stays generated: CADF wants a UUID there, and the user ids of some
    # identity backends are none.
    initiator = resource.Resource(typeURI=cadftaxonomy.ACCOUNT_USER)
    for name, value in who.items():
        if value:
            setattr(initiator, name, value)
    payload = event.Event(
        action=action,
        outcome=outcome,
        initiator=initiator,
        target=target,
        reason=cadf_reason.Reason(reasonType='magnum-lite', reasonCode=reason) if reason else None,
        observer=resource.Resource(typeURI=TYPE_URI),
    ).as_dict()
    return dict(payload)
