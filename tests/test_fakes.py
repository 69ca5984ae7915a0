"""The stand-ins of tests have the public methods and signatures of what they stand for.

Without this a test passes on a call that the real class would refuse."""

from __future__ import annotations

import inspect

import conftest
import fakes
import pytest

from magnum_lite import clients, rpc


def list_signatures(kind: type) -> dict[str, list[tuple[str, object, object]]]:
    """Of each public method: name, kind and default of every parameter."""
    return {
        name: [
            (parameter.name, parameter.kind, parameter.default)
            for parameter in inspect.signature(method).parameters.values()
        ]
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith('_')
    }


@pytest.mark.parametrize(
    ('fake', 'real', 'of_the_fake_only'),
    [
        (fakes.FakeCloud, clients.Cloud, {'call', 'all_stacks'}),
        (fakes.FakeStacks, clients.Stacks, set()),
        (fakes.FakeLookups, clients.Lookups, set()),
        (conftest.Nudges, rpc.Nudger, set()),
        (conftest.SigningHere, rpc.Signer, set()),
    ],
)
def test_fake_has_the_signatures_of_the_real_class(
    fake: type, real: type, of_the_fake_only: set[str]
) -> None:
    signatures = list_signatures(fake)
    for name in of_the_fake_only:
        del signatures[name]

    assert signatures == list_signatures(real)
