"""Every option of every driver folder, pairwise: the fewest clusters in which any two choices stand
together.

Nothing here knows a folder: the choices come from its manifest and from what the API takes. What a
folder refuses by its own rules is left out, and so is known to be refused."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from oslo_config import cfg

from magnum_lite import certs, drivers, errors, models
from magnum_lite.api import offline

Choice = Mapping[str, Any]
Row = tuple[int, ...]

#: What may be asked beside labels: bodies of the template, the cluster, its labels and a further
#: nodegroup, in part. The first choice of each is what is had by asking for nothing.
ASKED: dict[str, list[Choice]] = {
    'masters': [
        {},
        {'cluster': {'master_lb_enabled': True}},
        {'cluster': {'master_lb_enabled': True, 'master_count': 3}},
    ],
    'workers': [{}, {'cluster': {'node_count': 0}}, {'cluster': {'node_count': 2}}],
    'floating IPs': [{}, {'cluster': {'floating_ip_enabled': False}}],
    'external network': [
        {},
        {'template': {'external_network_id': None, 'floating_ip_enabled': False}},
    ],
    'network': [
        {},
        {'cluster': {'fixed_network': 'net'}},
        {'template': {'fixed_network': 'net', 'fixed_subnet': 'sub'}},
    ],
    'proxies': [
        {},
        {
            'template': {
                'http_proxy': 'http://proxy:3128',
                'https_proxy': 'http://proxy:3129',
                'no_proxy': 'example.com',
            }
        },
        {'template': {'http_proxy': 'http://proxy:3128'}},
    ],
    'insecure registry': [{}, {'template': {'insecure_registry': 'registry:5000'}}],
    'volume for images': [
        {},
        {'template': {'docker_volume_size': 5}},
        {'group': {'docker_volume_size': 7}},
    ],
    'keypair': [{}, {'template': {'keypair_id': 'me'}}],
    'name servers': [{}, {'template': {'dns_nameserver': '192.0.2.53,192.0.2.54'}}],
    'port of the API': [{}, {'template': {'apiserver_port': 8443}}],
    'without TLS': [{}, {'template': {'tls_disabled': True}}],
    'timeout': [{}, {'cluster': {'create_timeout': 20}}],
    'flavor of nodegroup': [{}, {'group': {'flavor_id': 'huge'}}],
    'image of nodegroup': [{}, {'group': {'image_id': 'another'}}],
    'nodes of nodegroup': [
        {},
        {'group': {'node_count': 0}},
        {'group': {'node_count': 3, 'role': 'gpu'}},
    ],
    'labels of nodes': [{}, {'group': {'node_labels': {'tier': 'x', 'example.com/a': ''}}}],
    'taints of nodes': [
        {},
        {'group': {'node_taints': [{'key': 'k', 'value': 'v', 'effect': 'NoSchedule'}]}},
    ],
}


@dataclass
class Walk:
    """All choices of a folder, and the rows that were found: the number of a choice for each
    factor."""

    conf: cfg.ConfigOpts
    driver: drivers.Driver
    factors: dict[str, list[Choice]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    #: Pairs that the folder refuses: (factor, choice), (factor, choice), by name.
    refused: set[tuple[tuple[str, int], tuple[str, int]]] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Find the rows, for an operator who lets clusters have users in the cloud."""
        self.conf.set_override('trustee_domain_id', 'users', 'trust')
        self.factors = ASKED | self._fields() | self._labels()
        names, sizes = list(self.factors), [len(choices) for choices in self.factors.values()]
        alone = {
            (f, c)
            for f, size in enumerate(sizes)
            for c in range(1, size)
            if self.is_taken(self.only((f, c)))
        }
        left = {
            pair for pair in itertools.combinations(sorted(alone), 2) if pair[0][0] != pair[1][0]
        }
        single = set(alone)
        while left or single:
            row = self._most(left, alone)
            new = {pair for pair in left if all(row[f] == c for f, c in pair)}
            if not new and left:
                pair = min(left)
                left.discard(pair)
                if self.is_taken(row := self.only(*pair)):
                    new = {pair}
                else:
                    self.refused.add(tuple((names[f], c) for f, c in pair))  # type: ignore[arg-type]
                    continue
            elif not new:
                row = self.only(min(single))
            self.rows.append(row)
            left -= new
            single -= {(f, c) for f, c in enumerate(row)}
        self.rows.insert(0, self.only())

    def _fields(self) -> dict[str, list[Choice]]:
        """A value comes with the label that it needs."""
        found: dict[str, list[Choice]] = {}
        for name, item in self.driver.manifest.get('template_fields', {}).items():
            found[f'field {name}'] = [{}]
            for value in item['schema'].get('enum', ()):
                label = item.get('needs_label', {}).get(value)
                found[f'field {name}'].append(
                    {
                        'template': {name: value},
                        'labels': {label: self.driver.labels_known[label]['schema']['examples'][0]}
                        if label
                        else {},
                    }
                )
        return found

    def _labels(self) -> dict[str, list[Choice]]:
        """A checksum and a version come with what they are of, and ranges do not overlap."""
        found: dict[str, list[Choice]] = {}
        known = self.driver.labels_known
        for number, (name, label) in enumerate(known.items()):
            values = offline._list_examples(label['schema'])
            if label['schema'].get('format') == 'ipv4-network':
                values = [f'10.{200 + number % 50}.0.0/16']
            if 'maximum' in label['schema']:
                values = values[:1]
            url = re.sub('_version$', '_tarball_url', name)
            checksum = url.replace('_url', '_sha256')
            together = (
                {url: 'https://mirror.example/x.tgz', checksum: 'e' * 64}
                if checksum in known
                else {}
            )
            if not name.endswith('_sha256'):
                found[f'label {name}'] = [
                    {},
                    *(
                        {
                            'labels': together
                            | {name: str(value).lower() if value in (True, False) else str(value)}
                        }
                        for value in dict.fromkeys(values)
                    ),
                ]
        return found

    def only(self, *chosen: tuple[int, int]) -> Row:
        """The row with these choices of factors, by their numbers, and nothing else."""
        return tuple(dict(chosen).get(f, 0) for f in range(len(self.factors)))

    def _most(
        self, left: set[tuple[tuple[int, int], tuple[int, int]]], alone: set[tuple[int, int]]
    ) -> Row:
        """A row with many pairs of those that are left: from the first on, whatever fits and is
        taken together."""
        wanted: dict[tuple[int, int], set[tuple[int, int]]] = {}
        for one, other in left:
            wanted.setdefault(one, set()).add(other)
            wanted.setdefault(other, set()).add(one)
        chosen: dict[int, int] = {}
        for f, c in sorted(wanted, key=lambda choice: (-len(wanted[choice]), choice)):
            if f not in chosen and (not chosen or wanted[f, c] & set(chosen.items())):
                chosen[f] = c
        row = self.only(*chosen.items())
        while not self.is_taken(row) and chosen:  # half of it, then what else goes with that
            kept: dict[int, int] = {}
            for f, c in chosen.items():
                if self.is_taken(self.only(*kept.items(), (f, c))):
                    kept[f] = c
            chosen, row = kept, self.only(*kept.items())
        return row

    def bodies(self, row: Row) -> dict[str, dict[str, Any]]:
        """What would be POSTed."""
        server_type, _, coe = self.driver.provides[0]
        plain = offline.TEMPLATE | {
            'coe': coe,
            'server_type': server_type,
            'driver': self.driver.name,
        }
        found: dict[str, dict[str, Any]] = {
            'template': plain,
            'cluster': {'name': 'c'},
            'labels': {},
            'group': {'name': 'further'},
        }
        for choices, number in zip(self.factors.values(), row, strict=True):
            for place, body in choices[number].items():
                found[place] |= body
        found['template'] |= {'labels': found.pop('labels')}
        return found

    def make(self, row: Row) -> tuple[models.Cluster, models.NodeGroup | None]:
        """The rows of the database. Raises Invalid or Conflict for what the API would refuse."""
        bodies = self.bodies(row)
        template = offline.make_template(self.conf, bodies['template'], self.driver.provides[0][1])
        _, cluster = offline.make_cluster(self.conf, template, bodies['cluster'])
        further = 'nodegroup_stack' in self.driver.manifest
        return cluster, offline.make_nodegroup(
            self.conf, self.driver, cluster, bodies['group']
        ) if further else None

    def is_taken(self, row: Row) -> bool:
        """Whether the API would take it."""
        try:
            self.make(row)
        except (errors.Invalid, errors.Conflict):
            return False
        return True

    def rendered(
        self,
        cluster: models.Cluster,
        group: models.NodeGroup | None,
        secrets: Mapping[str, certs.Pair],
    ) -> list[drivers.Rendered]:
        """What is sent for the cluster, and for its nodegroup."""
        return [
            offline.render(self.conf, self.driver, cluster, secrets, further)
            for further in (None, *([group] if group else ()))
        ]
