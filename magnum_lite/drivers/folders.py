"""Find the driver folders of this process, check their manifests, and make a `Driver` of each.

A process calls `load` once, when it starts, and passes the `Drivers` on in its services. A folder
is `manifest.yaml` (`templates/manifest.schema.yaml` says what may stand in it), Jinja templates,
`files/`, and seldom a `driver.py`. Folders whose name begins with `_` hold what others include. A
folder may extend another one and then says only what differs.

This module reads folders and imports `driver.py` of those that have one. An operator's folder is
trusted as the service's own code is.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from oslo_config import cfg

from magnum_lite import errors
from magnum_lite.drivers.driver import Driver, Drivers
from magnum_lite.drivers.labels import Manifest, find_problem, make_error

BUILT_IN = Path(__file__).parent.with_name('templates')
ENTRY_POINTS = 'magnum_lite.drivers'

#: Keys of a manifest of which a folder that extends another one changes single entries. Any other
#: key it replaces.
MERGED = ('labels', 'facts', 'parameters', 'template_fields')

Manifests = Mapping[Path, dict[str, Any]]


def load(conf: cfg.ConfigOpts) -> Drivers:
    """Return all drivers. Folders of `[drivers] path` win over entry points, those over built-ins.

    Folders are read once in a process. Raises `DriverError` for the first faulty folder, with the
    place of the fault.
    """
    return Drivers(read_folders(tuple(conf.drivers.path)), conf.drivers.disabled_drivers)


@functools.lru_cache(maxsize=8)
def read_folders(path: tuple[str, ...]) -> dict[str, Driver]:
    """Read and check all folders: drivers by current name. `path` is `[drivers] path`."""
    manifests = {folder: _read_manifest(folder) for folder in _list_folders(path)}
    current_names = _list_current_names(manifests)
    folders: dict[str, list[Path]] = {}
    for folder in manifests:
        name = current_names.get(folder.name, folder.name)
        folders.setdefault(name, []).append(folder)
    chains = {}
    for name, same_name in folders.items():
        chains[name] = _follow_extends(same_name[-1], folders, manifests, current_names)
    drivers = {}
    # Short chains first, so that a fault is reported for the folder that has it.
    for name, chain in sorted(chains.items(), key=lambda item: len(item[1])):
        driver_class = _load_class(chain)
        manifest = _merge_manifests([manifests[folder] for folder in chain])
        check_manifest(chain[0], manifest)
        manifest['former_names'] = [old for old, new in current_names.items() if new == name]
        homes = dict.fromkeys([*(folder.parent for folder in chain), BUILT_IN])
        shared = [home / '_shared' for home in homes if (home / '_shared').is_dir()]
        drivers[name] = driver_class(name, manifest, [*chain, *shared])
    return drivers


def _list_folders(path: Sequence[str]) -> Iterator[Path]:
    """All driver folders. One that takes the place of another comes behind it."""
    homes = [BUILT_IN]
    for entry in sorted(importlib.metadata.entry_points(group=ENTRY_POINTS), key=lambda e: e.name):
        homes += [Path(place) for place in entry.load().__path__]
    for place in reversed(path):
        if not Path(place).is_dir():
            raise errors.DriverError(f'[drivers] path {place}: there is no such folder')
        homes.append(Path(place))
    for home in homes:
        for folder in sorted(home.iterdir()):
            if (folder / 'manifest.yaml').is_file() and not folder.name.startswith('_'):
                yield folder


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = yaml.safe_load((folder / 'manifest.yaml').read_text(encoding='utf-8'))
    except (OSError, UnicodeError, yaml.YAMLError) as exc:
        raise make_error(folder, 'manifest.yaml', exc) from exc
    if not isinstance(manifest, dict):
        raise make_error(folder, 'manifest.yaml $', f'{manifest!r:.80} is not a mapping')
    return manifest


def _list_current_names(manifests: Manifests) -> dict[str, str]:
    """The current name of a folder by its former names, of which rows and folders may hold one.

    A folder that bears the former name of another takes its place, as it did before the renaming.
    """
    names: dict[str, str] = {}
    for folder, manifest in manifests.items():
        former_names = manifest.get('former_names')
        # The schema is checked later, when what a folder extends is known.
        for former in former_names if isinstance(former_names, list) else ():
            # The first one keeps it: operators copy built-in folders, with this key.
            names.setdefault(str(former), folder.name)
    return names


def _follow_extends(
    folder: Path,
    folders: Mapping[str, list[Path]],
    manifests: Manifests,
    current_names: Mapping[str, str],
) -> list[Path]:
    """The folder, the one that it extends, and so on.

    `folders` of one name each stand behind those whose place they take. A folder that extends its
    own name means the one whose place it takes.
    """
    chain = [folder]
    while (extended := manifests[folder].get('extends')) is not None:
        name = str(extended)
        candidates = folders.get(current_names.get(name, name), [])
        if folder in candidates:
            candidates = candidates[: candidates.index(folder)]
        if not candidates:
            problem = f'there is no other driver folder {extended}'
            raise make_error(folder, 'manifest.yaml $.extends', problem)
        if candidates[-1] in chain:
            problem = f'{extended} extends this folder itself'
            raise make_error(folder, 'manifest.yaml $.extends', problem)
        folder = candidates[-1]
        chain.append(folder)
    return chain


def _load_class(chain: Iterable[Path]) -> type[Driver]:
    """Return the class of the first `driver.py` in these folders, or the plain one."""
    for folder in chain:
        source = folder / 'driver.py'
        if not source.is_file():
            continue
        spec = importlib.util.spec_from_file_location(f'magnum_lite_driver_{folder.name}', source)
        # The name of the file ends in .py, so there is a loader.
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as exc:
            raise make_error(folder, 'driver.py', f'{type(exc).__name__}: {exc}') from exc
        driver_class = getattr(module, 'Driver', None)
        if not isinstance(driver_class, type) or not issubclass(driver_class, Driver):
            raise errors.DriverError(
                f'driver folder {folder}: driver.py has no class Driver that is a drivers.Driver'
            )
        return driver_class
    return Driver


def _merge_manifests(manifests: Sequence[Manifest]) -> dict[str, Any]:
    """Merge manifests, of which the first wins. Null takes away what the later ones have."""
    result: dict[str, Any] = {}
    for manifest in reversed(manifests):
        for key, value in manifest.items():
            inherited = result.get(key)
            if key in MERGED and isinstance(value, dict) and isinstance(inherited, dict):
                entries = inherited | value
                result[key] = {name: entry for name, entry in entries.items() if entry is not None}
            elif value is None and key in result:
                del result[key]
            else:
                result[key] = value
    return result


@functools.cache
def _read_schema() -> jsonschema.Draft202012Validator:
    text = (BUILT_IN / 'manifest.schema.yaml').read_text(encoding='utf-8')
    return jsonschema.Draft202012Validator(yaml.safe_load(text))


def check_manifest(folder: Path, manifest: Manifest) -> None:
    """Raise `DriverError` for the first fault of a manifest, with its place."""
    fault = jsonschema.exceptions.best_match(_read_schema().iter_errors(manifest))
    if fault is not None:
        raise make_error(folder, f'manifest.yaml {fault.json_path}', fault.message)
    for place, problem in itertools.chain(_find_key_faults(manifest), _find_label_faults(manifest)):
        raise make_error(folder, f'manifest.yaml $.{place}', problem)


#: What a schema cannot say: (path in the manifest, problem).
Faults = Iterator[tuple[str, object]]


def _find_key_faults(manifest: Manifest) -> Faults:
    """Find names of authorities that `keys` does not have."""
    keys = manifest.get('keys', {})
    for name, spec in manifest.get('certificates', {}).items():
        if name in keys or spec['signed_by'] not in keys:
            yield f'certificates.{name}', 'no such authority, or a name used twice'
    health = manifest.get('health', {})
    named = {
        'signing': manifest.get('signing', {}).get('types', {}).values(),
        'access': [manifest.get('access', {}).get('authority')],
        'health': [health.get('authority'), health.get('certificate', {}).get('signed_by')],
    }
    authorities = {name for name, spec in keys.items() if spec['kind'] == 'ca'}
    for place, names in named.items():
        unknown = sorted({*names} - authorities - {None})
        if unknown:
            yield place, f'there is no authority {", ".join(unknown)}'


def _find_label_faults(manifest: Manifest) -> Faults:
    """Find defaults that are not valid, patterns that do not compile, labels that do not exist."""
    labels = manifest['labels']
    for name, label in labels.items():
        default = label.get('default')
        problem = None if default is None else find_problem(label['schema'], default)
        if problem:
            yield f'labels.{name}.default', problem
    patterns = [('node_labels.refused', manifest.get('node_labels', {}).get('refused', ''))]
    for item in manifest.get('retired_labels', ()):
        patterns += [(f'retired_labels.{key}', item.get(key, '')) for key in ('names', 'harmless')]
    for place, pattern in patterns:
        try:
            re.compile(pattern, re.VERBOSE)
        except re.error as exc:
            yield place, exc
    for item in manifest.get('ranges', ()):
        for label in (item['label'], item.get('per_node', item['label'])):
            if label not in labels:
                yield 'ranges', f'there is no label {label}'
    version = manifest.get('upgrade', {}).get('version')
    if version is not None and version not in labels:
        yield 'upgrade', f'there is no label {version}'
