"""The texts of a stack that runs, and how they change: members come and go, and all else stays to
the letter.

A stored text is `{'template': str, 'files': {name: str}}`, what Heat has. A later release of the
templates must change nothing that runs, so an update never sends what a driver renders now: it
edits what was sent before, as data. Only `Texts` knows how members stand in such a text; which
members there are to be is decided in `members`."""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml

from magnum_lite.userdata import quote

#: Of how many times the user-data may be that the members of a role have: each is a parameter of
#: their stack.
USER_DATA_SLOTS = 8

_Loader: Any = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)


class Texts:
    """Reads and edits the texts of one driver's stacks."""

    def __init__(self, stacks: Collection[Mapping[str, Any]], version: str | None) -> None:
        """`stacks`: what the manifest says of each stack. `version`: the parameter that is the
        engine's."""
        self._user_data = dict.fromkeys(
            (name, item['role'])
            for stack in stacks
            for name, item in stack.get('user_data', {}).items()
        )
        self._files = {
            name: item for stack in stacks for name, item in stack.get('files', {}).items()
        }
        self._version = version

    def role_of(self, resource_type: str) -> str | None:
        """The role whose members are made from a file, by its name, which is their resource type in
        a stack."""
        role: str | None = self._files.get(resource_type, {}).get('role')
        return role

    def numbers(self, text: Mapping[str, Any]) -> dict[str, set[int]]:
        """The numbers of the members in a stored text, by role."""
        return {
            role: {int(number) for number in content.get('resources') or {}}
            for _, role, content in self._member_files(text)
        }

    def with_members(
        self, text: Mapping[str, Any], rendered: Mapping[str, str], roles: Collection[str]
    ) -> dict[str, Any]:
        """The stored text with the members of `rendered`, which are files by name.

        Those that it has stay as they are written, and so do members of other roles than `roles`. A
        new member is written like its neighbours, because the stored file that it is made from may
        know other properties than ours. It reads user-data from a parameter that no old one reads,
        if there is one: a new value in a parameter is to Heat a change of all that read it."""
        files, root = dict(text['files']), yaml.load(text['template'], Loader=_Loader)
        fresh = {name: content for name, _, content in self._member_files({'files': rendered})}
        for name, role, content in self._member_files(text):
            if role not in roles:
                continue
            there = content.get('resources') or {}
            sample = next(iter(there.values()), None)
            wanted = {
                number: there.get(number) or _alike(sample, member)
                for number, member in (fresh[name].get('resources') or {}).items()
            }
            if wanted != there:
                content |= {'resources': wanted, 'outputs': fresh[name]['outputs']}
                for slots in self._slots(root, name, role, content).values():
                    _take_slot(root, name, content, slots, set(wanted) - set(there))
                files[name] = quote(content)
        changed = root != yaml.load(text['template'], Loader=_Loader)
        return {'template': quote(root) if changed else text['template'], 'files': files}

    def values(
        self,
        text: Mapping[str, Any],
        rendered: Mapping[str, Any],
        young: Mapping[str, Collection[int]],
    ) -> dict[str, Any]:
        """Of the parameters of `rendered` those that members need who may be made now: user-data,
        the engine's version.

        `young` are their numbers by role. What nobody reads any more is emptied.
        """
        values, root = {}, yaml.load(text['template'], Loader=_Loader)
        for file, role, content in self._member_files(text):
            for name, slots in self._slots(root, file, role, content).items():
                if not slots and young.get(role):
                    values[name] = rendered[name]
                for slot, parameter in slots.items():
                    readers = {
                        int(number)
                        for number, member in (content.get('resources') or {}).items()
                        if _reads(member, slot)
                    }
                    if not readers.isdisjoint(young.get(role, ())):
                        values[parameter] = rendered[name]
                    elif parameter == name and not readers:
                        values[name] = ''
        if self._version and any(young.values()) and self._version in rendered:
            values[self._version] = rendered[self._version]
        return values

    def _member_files(self, text: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """The files of a text that list members: (name, role, content)."""
        for name, content in (text.get('files') or {}).items():
            item = self._files.get(name, {})
            if item.get('members'):
                yield name, item['role'], yaml.load(content, Loader=_Loader)

    def _slots(
        self, root: Mapping[str, Any], file: str, role: str, content: Mapping[str, Any]
    ) -> dict[str, dict[str, str]]:
        """For each parameter of a root template that is user-data of a role: what members in a file
        may read.

        That is {property of the file's resource: parameter of the root template}, or {} if they
        read it otherwise."""
        declared = root.get('parameters') or ()
        found = {}
        for name in (name for name, whose in self._user_data if whose == role and name in declared):
            handed = next(
                (
                    key
                    for item in _holders(root, file)
                    for key, value in item['properties'].items()
                    if value == {'get_param': name}
                ),
                None,
            )
            ends = ('', *(f'_{n}' for n in range(2, USER_DATA_SLOTS + 1)))
            slots = {f'{handed}{end}': f'{name}{end}' for end in ends}
            members_read = all(
                any(_reads(member, slot) for slot in slots)
                for member in (content.get('resources') or {}).values()
            )
            found[name] = slots if handed and members_read else {}
        return found


def _alike(sample: Mapping[str, Any] | None, member: Mapping[str, Any]) -> Mapping[str, Any]:
    """The resource of a member, with just the properties that another one has."""
    if sample is None:
        return member
    return {
        **sample,
        'properties': {
            name: member['properties'].get(name, value)
            for name, value in sample['properties'].items()
        },
    }


def _holders(root: Mapping[str, Any], file: str) -> list[dict[str, Any]]:
    """The resources of a root template that are made from a file."""
    return [
        item for item in root['resources'].values() if item['type'] == file and 'properties' in item
    ]


def _reads(member: Mapping[str, Any], parameter: str) -> bool:
    return {'get_param': parameter} in member.get('properties', {}).values()


def _take_slot(
    root: dict[str, Any],
    file: str,
    content: dict[str, Any],
    slots: Mapping[str, str],
    new: Collection[str],
) -> None:
    """Have new members read a parameter of their own, in place; what nobody reads goes, but for the
    first.

    If all are taken they share the one with the fewest readers.
    """
    first, *others = slots or ['']
    readers = collections.Counter(
        slot
        for number, member in content['resources'].items()
        if number not in new
        for slot in slots
        if _reads(member, slot)
    )
    if others and new:
        free = min(slots, key=lambda slot: readers[slot])
        readers[free] += 1
        content['resources'] |= {
            number: member
            | {
                'properties': {
                    key: {'get_param': free} if value == {'get_param': first} else value
                    for key, value in member['properties'].items()
                }
            }
            for number, member in content['resources'].items()
            if number in new
        }
    for slot in others:
        for declared, name, spec in (
            (content['parameters'], slot, content['parameters'][first]),
            (root['parameters'], slots[slot], root['parameters'][slots[first]]),
            *(
                (item['properties'], slot, {'get_param': slots[slot]})
                for item in _holders(root, file)
            ),
        ):
            declared.pop(name, None)
            if readers[slot]:
                declared[name] = spec
