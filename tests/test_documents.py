"""The documents agree with the repository: what they name and link to is there, and lists that are
written in two places are the same.

`README.md`, `CONTRIBUTING.md`, `doc/` and the comments that cite them are read here and never
changed. Nothing is started but `tools/lint --list`."""

from __future__ import annotations

import configparser
import importlib.machinery
import importlib.util
import pathlib
import re
import subprocess
from collections.abc import Iterator
from types import ModuleType

import pytest
import sqlalchemy as sa
import yaml

from magnum_lite import models, states

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'magnum_lite'
CONTRIBUTOR = ROOT / 'doc' / 'contributor'
FOLDERS = ('magnum_lite', 'tests', 'tools', 'bench', 'devstack', 'doc', 'etc', '.ci')
#: What is read as text, by the end of a name; '' is a program or a file such as `.gitignore`.
ENDS = frozenset(('.py', '.md', '.rst', '.yaml', '.j2', '.sh', '.cfg', '.toml', '.ini', ''))


def list_texts() -> Iterator[pathlib.Path]:
    """Every file of the repository that may cite a document."""
    candidates = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        candidates += (path for path in (ROOT / folder).rglob('*') if path.is_file())
    for path in sorted(candidates):
        if path.suffix in ENDS and '__pycache__' not in path.parts and path.name != 'LICENSE':
            yield path


def list_documents() -> list[pathlib.Path]:
    return [path for path in list_texts() if path.suffix == '.md']


def name_of(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


# -- what is cited is there ------------------------------------------------------------------------

#: A document as it is cited. `ROOT / 'doc' / 'drivers.md'` in Python is no citation.
CITATION = re.compile(r"(?<!/ ')(?<![\w./-])((?:[\w-]+/)*[\w-]+\.md|doc/openapi\.json)\b")
DECISION = re.compile(r'doc/decisions/(\d{4})\b')


def test_every_cited_document_exists() -> None:
    missing = []
    for path in list_texts():
        text = path.read_text(errors='replace')
        for match in CITATION.finditer(text):
            cited = match[1]
            if not (ROOT / cited).exists() and not (path.parent / cited).exists():
                missing.append(f'{name_of(path)}: {cited}')
        for match in DECISION.finditer(text):
            if not list((ROOT / 'doc' / 'decisions').glob(f'{match[1]}-*.md')):
                missing.append(f'{name_of(path)}: decision {match[1]}')

    assert missing == []


LINK = re.compile(r'\[[^]]*\]\(([^)\s]+)\)')


def list_anchors(document: pathlib.Path) -> set[str]:
    """The anchors that a page has, by the rules of the common hosts."""
    anchors = set()
    for heading in re.findall(r'^#+ +(.*)$', document.read_text(), re.MULTILINE):
        letters = re.sub(r'[^\w\- ]', '', heading.lower())
        anchors.add(letters.replace(' ', '-'))
    return anchors


@pytest.mark.parametrize('document', list_documents(), ids=name_of)
def test_links_lead_to_files_and_headings(document: pathlib.Path) -> None:
    broken = []
    for target in LINK.findall(document.read_text()):
        if '://' in target:
            continue
        file, _, anchor = target.partition('#')
        linked = document.parent / file if file else document
        if not linked.exists() or (anchor and anchor not in list_anchors(linked)):
            broken.append(target)

    assert broken == []


#: A source file as documents name it, in backticks. `<noun>` and the like are placeholders.
SOURCE = re.compile(r'`((?:[\w.-]+/)+[\w*.-]+\.(?:py|yaml|j2|sh|cfg|md))`')
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *CONTRIBUTOR.glob('*.md')]


@pytest.mark.parametrize('document', PAGES, ids=name_of)
def test_documents_name_files_that_exist(document: pathlib.Path) -> None:
    named = set(SOURCE.findall(document.read_text()))
    places = (ROOT, PACKAGE, ROOT / 'tests')
    missing = [name for name in named if not any(list(place.glob(name)) for place in places)]

    assert missing == []


# -- lists that are written twice ------------------------------------------------------------------


def test_hooks_are_the_checks_of_lint() -> None:
    listed = subprocess.run(
        [ROOT / 'tools' / 'lint', '--list'], capture_output=True, text=True, check=True
    )
    config = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())
    hooks = config['repos'][0]['hooks']
    entries = {hook['id']: hook['entry'] for hook in hooks}

    checks = listed.stdout.split()
    assert sorted(entries) == sorted(checks)
    # A hook checks the message that is about to be committed, and lint those that are.
    assert entries.pop('commits') == 'tools/check-commits --message'
    assert entries == {name: f'tools/lint {name}' for name in entries}


def test_tox_and_test_call_lint() -> None:
    assert 'tools/lint' in (ROOT / 'tox.ini').read_text()
    assert 'tools/lint' in (ROOT / 'tools' / 'test').read_text()
    for checker in ('ruff check', 'codespell', 'shellcheck -S', 'lint-imports', 'bashate'):
        assert checker not in (ROOT / 'tox.ini').read_text()
        assert checker not in (ROOT / 'tools' / 'test').read_text()


def test_architecture_has_the_floors_that_are_checked() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / '.importlinter')
    layers = parser['importlinter:contract:floors']['layers'].strip()

    assert f'```\n{layers}\n```' in (CONTRIBUTOR / 'architecture.md').read_text()


def test_architecture_names_every_room() -> None:
    page = (CONTRIBUTOR / 'architecture.md').read_text()
    rooms = {path.stem for path in PACKAGE.glob('*.py')} - {'__init__'}
    rooms |= {path.parent.name for path in PACKAGE.glob('*/__init__.py')}
    unnamed = [room for room in rooms if not re.search(rf'`{room}(\.py|/)`', page)]

    assert unnamed == []


@pytest.mark.parametrize('folder', ['conductor', 'db', 'drivers'])
def test_architecture_names_every_file_of_a_room(folder: str) -> None:
    page = (CONTRIBUTOR / 'architecture.md').read_text()
    files = {path.stem for path in (PACKAGE / folder).glob('*.py')} - {'__init__'}

    assert [file for file in sorted(files) if f'`{file}`' not in page] == []


# -- words and columns -----------------------------------------------------------------------------

TABLES = models.Base.metadata.tables
#: Numbers of these tables that count nothing of the protocol.
NO_COUNTERS = frozenset(
    ('id', 'docker_volume_size', 'create_timeout', 'node_count', 'min_node_count', 'max_node_count')
)


def read_section(page: str, heading: str) -> str:
    text = (CONTRIBUTOR / f'{page}.md').read_text()
    return text.partition(f'\n## {heading}\n')[2].partition('\n## ')[0]


def list_counters() -> set[str]:
    """The columns of clusters and nodegroups that count something."""
    columns = [*TABLES['clusters'].columns, *TABLES['nodegroups'].columns]
    numbers = {column.name for column in columns if isinstance(column.type, sa.Integer)}
    return numbers - NO_COUNTERS - {'batch_size'}


def test_protocol_explains_every_counter() -> None:
    table = read_section('protocol', 'The counters')

    assert {name for name in list_counters() if f'| `{name}` |' not in table} == set()


def test_glossary_has_a_word_for_every_counter() -> None:
    glossary = (CONTRIBUTOR / 'glossary.md').read_text()
    words = {'next_number': 'next_number', 'rotation_phase': 'rotation phase'}

    assert [name for name in list_counters() if words.get(name, name) not in glossary] == []


def test_protocol_says_who_writes_columns_that_exist() -> None:
    section = read_section('protocol', 'Who writes what')
    first_cells = re.findall(r'^\| ([^|]*) \|', section, re.MULTILINE)
    named = set(re.findall(r'`(\w+)`', ' '.join(first_cells)))
    columns = {column.name for table in TABLES.values() for column in table.columns}

    assert named - columns - set(TABLES) == set()


def test_protocol_draws_every_status() -> None:
    drawing = read_section('protocol', 'Statuses')

    assert [status for status in states.STATUSES if status not in drawing] == []


# -- tools/check-commits ---------------------------------------------------------------------------


@pytest.fixture(scope='module')
def check_commits() -> ModuleType:
    """The program, whose name does not end in .py, as a module."""
    path = str(ROOT / 'tools' / 'check-commits')
    loader = importlib.machinery.SourceFileLoader('check_commits', path)
    spec = importlib.util.spec_from_loader('check_commits', loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ('message', 'fault'),
    [
        ('Name the thing\n\nWhy it was done.\n', None),
        ('Name the thing\n\nSeen with:\n\n    a line of output ' + 'x' * 80, None),
        ('Name the thing\n\nSee https://example.org/' + 'x' * 80, None),
        ('x' * 61 + '\n\nWhy.\n', 'the subject has 61 characters'),
        ('Name the thing\nWhy it was done.\n', 'the second line is not blank'),
        ('Name the thing\n', 'there is no body'),
        ('Name the thing\n\nSigned-off-by: A Person <a@example.org>\n', 'there is no body'),
        ('Name the thing\n\n' + 'x' * 73, 'a line of the body has 73 columns'),
    ],
)
def test_messages_of_commits_have_a_form(
    check_commits: ModuleType, message: str, fault: str | None
) -> None:
    faults = check_commits.find_faults(message)

    assert len(faults) == (0 if fault is None else 1)
    assert fault is None or faults[0].startswith(fault)
