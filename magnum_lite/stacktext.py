"""Edit the texts of a running stack: members come and go, all else stays as it was sent.

A stored text is `{'template': str, 'files': {name: str}}`, as Heat has it. A later release of the
templates must change nothing that runs. So an update never sends what a driver renders now: it
edits, as data, what was sent before.

The conductor uses this through `Driver.texts`. Only `Texts` knows how members stand in a text;
`members` decides which members there are to be. All functions are pure.
"""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml

from magnum_lite.userdata import quote

#: How many versions of their user-data the members of a role can have at a time. Each is a
#: parameter of their stack, called a slot here.
USER_DATA_SLOTS = 8

_Loader: Any = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)

#: A stored text, a Heat template or a part of one, as data.
Content = Mapping[str, Any]


class Texts:
    """Reads and edits the texts of one driver's stacks."""

    def __init__(self, stacks: Collection[Content], version: str | None) -> None:
        """`stacks` of the manifest. `version`: the Heat parameter of the engine's version."""
        self._files: dict[str, Content] = {}
        # (parameter, role), in the order of the manifest.
        self._user_data: dict[tuple[str, str], None] = {}
        for stack in stacks:
            self._files |= stack.get('files', {})
            for name, item in stack.get('user_data', {}).items():
                self._user_data[name, item['role']] = None
        self._version = version

    def find_role(self, resource_type: str) -> str | None:
        """The role of members that are made from a file, whose name is their resource type."""
        role: str | None = self._files.get(resource_type, {}).get('role')
        return role

    def list_numbers(self, text: Content) -> dict[str, set[int]]:
        """The numbers of the members in a stored text, by role."""
        return {
            role: {int(number) for number in _get_resources(content)}
            for _, role, content in self._list_member_files(text)
        }

    def replace_members(
        self, text: Content, rendered: Mapping[str, str], roles: Collection[str]
    ) -> dict[str, Any]:
        """Return the stored text with the members that `rendered` has, which are files by name.

        Members that the text has stay as they are written, and so do all of other roles than
        `roles`. A new member gets the properties of a stored one, because the stored file that it
        is made from may have other parameters than the rendered one. Its user-data comes from a
        parameter that no older member reads, if one is free: Heat takes a new value of a parameter
        as a change of every resource that reads it.
        """
        files = dict(text['files'])
        root = yaml.load(text['template'], Loader=_Loader)
        rendered_files = {
            name: content for name, _, content in self._list_member_files({'files': rendered})
        }
        for name, role, content in self._list_member_files(text):
            if role not in roles:
                continue
            stored = _get_resources(content)
            neighbour = next(iter(stored.values()), None)
            resources = {}
            for number, member in _get_resources(rendered_files[name]).items():
                resources[number] = stored.get(number) or _copy_properties(neighbour, member)
            if resources == stored:
                continue
            content |= {'resources': resources, 'outputs': rendered_files[name]['outputs']}
            for slots in self._list_slots(root, name, role, content).values():
                _assign_slot(root, name, content, slots, set(resources) - set(stored))
            files[name] = quote(content)
        template = text['template']
        if root != yaml.load(template, Loader=_Loader):
            template = quote(root)
        return {'template': template, 'files': files}

    def select_parameters(
        self,
        text: Content,
        rendered: Content,
        recreatable: Mapping[str, Collection[int]],
    ) -> dict[str, Any]:
        """Select from the parameters of `rendered` those to send: user-data, the engine's version.

        `recreatable`: numbers, by role, of the members that Heat may create or create again. Only
        they get new values. A parameter that no member reads any more becomes empty.
        """
        root = yaml.load(text['template'], Loader=_Loader)
        values = {}
        for file, role, content in self._list_member_files(text):
            numbers = recreatable.get(role, ())
            for name, slots in self._list_slots(root, file, role, content).items():
                if not slots and numbers:
                    values[name] = rendered[name]
                for slot, parameter in slots.items():
                    readers = {
                        int(number)
                        for number, member in _get_resources(content).items()
                        if _reads(member, slot)
                    }
                    if not readers.isdisjoint(numbers):
                        values[parameter] = rendered[name]
                    elif parameter == name and not readers:
                        values[name] = ''
        if self._version and any(recreatable.values()) and self._version in rendered:
            values[self._version] = rendered[self._version]
        return values

    def _list_member_files(self, text: Content) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """The files of a text that list members: (name, role, content)."""
        for name, content in (text.get('files') or {}).items():
            item = self._files.get(name, {})
            if item.get('members'):
                yield name, item['role'], yaml.load(content, Loader=_Loader)

    def _list_slots(
        self, root: Content, file: str, role: str, content: Content
    ) -> dict[str, dict[str, str]]:
        """The slots from which the members of a file can read user-data, by parameter of the root.

        Slots are {parameter of the file: parameter of the root template}. They are {} if the
        members read user-data in another way than by `get_param` of a slot.
        """
        declared = root.get('parameters') or ()
        slots_of: dict[str, dict[str, str]] = {}
        for name, reading_role in self._user_data:
            if reading_role != role or name not in declared:
                continue
            slots_of[name] = {}
            first = _find_property(root, file, {'get_param': name})
            if first is None:
                continue
            slots = {first: name}
            for n in range(2, USER_DATA_SLOTS + 1):
                slots[f'{first}_{n}'] = f'{name}_{n}'
            members = _get_resources(content).values()
            if all(any(_reads(member, slot) for slot in slots) for member in members):
                slots_of[name] = slots
        return slots_of


def _get_resources(content: Content) -> dict[str, Any]:
    """The resources of a template, which may be null."""
    return content.get('resources') or {}


def _copy_properties(neighbour: Content | None, member: Content) -> Any:
    """The resource of a member with just the properties that its neighbour has."""
    if neighbour is None:
        return member
    properties = {
        name: member['properties'].get(name, value)
        for name, value in neighbour['properties'].items()
    }
    return {**neighbour, 'properties': properties}


def _list_made_from(root: Content, file: str) -> list[dict[str, Any]]:
    """The resources of a root template that are made from a file."""
    return [
        item for item in root['resources'].values() if item['type'] == file and 'properties' in item
    ]


def _find_property(root: Content, file: str, value: Any) -> str | None:
    """The first property with this value of a resource that is made from a file."""
    for item in _list_made_from(root, file):
        for name, other in item['properties'].items():
            if other == value:
                return str(name)
    return None


def _reads(member: Content, parameter: str) -> bool:
    return {'get_param': parameter} in member.get('properties', {}).values()


def _assign_slot(
    root: dict[str, Any],
    file: str,
    content: dict[str, Any],
    slots: Mapping[str, str],
    new: Collection[str],
) -> None:
    """Make new members read the slot with the fewest readers, which is a free one if there is any.

    Edits `root` and `content` in place. Slots that no member reads are removed, but not the first.
    """
    if not slots:
        return
    first, *others = slots
    readers = collections.Counter(
        slot
        for number, member in content['resources'].items()
        if number not in new
        for slot in slots
        if _reads(member, slot)
    )
    if new:
        chosen = min(slots, key=lambda slot: readers[slot])
        readers[chosen] += 1
        for number, member in content['resources'].items():
            if number in new:
                content['resources'][number] = _read_slot(member, first, chosen)
    for slot in others:
        # Where a slot stands: (mapping, key, value). All three go together.
        places = [
            (content['parameters'], slot, content['parameters'][first]),
            (root['parameters'], slots[slot], root['parameters'][slots[first]]),
        ]
        for item in _list_made_from(root, file):
            places.append((item['properties'], slot, {'get_param': slots[slot]}))
        for mapping, key, value in places:
            mapping.pop(key, None)
            if readers[slot]:
                mapping[key] = value


def _read_slot(member: Content, first: str, chosen: str) -> dict[str, Any]:
    """A new member, which reads the first slot, with another slot instead."""
    properties = {
        name: {'get_param': chosen} if value == {'get_param': first} else value
        for name, value in member['properties'].items()
    }
    return {**member, 'properties': properties}
