"""The rules of the house that a grep can hold."""

from __future__ import annotations

import ast
import pathlib
import re
import subprocess
import sys

import pytest

from magnum_lite import config, drivers, errors, schema
from magnum_lite.api import policies, resources, routes, versions
from magnum_lite.conductor import diagnose

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'tools'))

import measure

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'magnum_lite'
SOURCES = sorted(path for path in PACKAGE.rglob('*.py') if 'templates' not in path.parts)


def lines(pattern: str, *, but: tuple[str, ...] = ()) -> list[str]:
    found = []
    for path in SOURCES:
        if path.relative_to(PACKAGE).as_posix() in but:
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(pattern, line, re.I):
                found.append(f'{path.relative_to(ROOT)}:{number}: {line.strip()}')
    return found


def test_setup_cfg_has_one_line_that_devstack_takes_for_the_name_of_the_package() -> None:
    """`_setup_package_with_constraints_edit` of DevStack's master takes every line of setup.cfg
    that begins with `name` and has an `=`; a second one ends in `[: too many arguments`."""
    text = (ROOT / 'setup.cfg').read_text()

    assert re.findall(r'(?m)^name.*=.*$', text) == ['name = magnum-lite']


def test_no_word_of_an_engine_or_an_os_outside_templates() -> None:
    words = (
        r'\b(kube(?!config)\w*|kubernetes|k8s|swarm|mesos|marathon|flannel|calico|cilium|etcd|containerd|ubuntu|'
        r'debian|fedora|coreos|flatcar|suse)\b'
    )

    assert lines(words) == []  # but kubeconfig, which is an address of ours


def test_only_move_writes_a_status_of_a_cluster() -> None:
    writers = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _writes_cluster_status(node):
                writers.append(f'{path.relative_to(PACKAGE)}: {ast.unparse(node)}')

    assert len(writers) == 1, writers
    assert writers[0].startswith('db/leases.py') and 'status=status' in writers[0]  # move()
    assert lines(r'cluster\.status\s*=[^=]') == []


def _writes_cluster_status(call: ast.Call) -> bool:
    """Whether a call is an UPDATE of clusters that names the column `status`."""
    if not any(keyword.arg == 'status' for keyword in call.keywords):
        return False
    text = ast.unparse(call)
    return bool(re.match(r'update_rows\(\w+, (models\.)?Cluster,', text)) or bool(
        re.search(r'\bupdate\((models\.)?Cluster\)', text)
    )


def test_nobody_names_the_global_configuration_but_config_and_the_command() -> None:
    assert lines(r'cfg\.CONF\b|config\.CONF\b', but=('config.py', 'cli.py')) == []


def test_no_eventlet() -> None:
    assert lines(r'import eventlet|from eventlet|monkey_patch') == []


def test_no_sleep_in_api_or_tests() -> None:
    assert lines(r'time\.sleep') == []
    sleeping = [
        path.name
        for path in (ROOT / 'tests').glob('test_*.py')
        if path.name != 'test_rules.py' and 'time.sleep' in path.read_text()
    ]
    assert sleeping == []


def test_no_test_module_imports_another() -> None:
    """What several of them need is in a module of its own, as `stories`, `rows`, `rendering`."""
    importing = [
        f'{path.relative_to(ROOT)}: {line}'
        for path in (ROOT / 'tests').rglob('*.py')
        for line in path.read_text().splitlines()
        if re.match(r'\s*(from|import) ((functional|nodes|chaos|devstack)\.)?test_', line)
    ]
    assert importing == []


def test_everything_public_has_a_docstring() -> None:
    missing = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        if ast.get_docstring(tree) is None:
            missing.append(str(path.relative_to(ROOT)))
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.FunctionDef | ast.ClassDef)
                and not node.name.startswith('_')
                and ast.get_docstring(node) is None
                and not _is_inner(tree, node)
                and not _is_stub(node)
            ):
                missing.append(f'{path.relative_to(ROOT)}:{node.lineno} {node.name}')
    allowed = {
        'process_bind_param',
        'process_result_value',
        'load_dialect_impl',
    }  # SQLAlchemy's, not ours
    assert [m for m in missing if m.split()[-1] not in allowed] == []


def _is_stub(node: ast.AST) -> bool:
    """A member of a Protocol: its class says what it is."""
    return (
        isinstance(node, ast.FunctionDef)
        and len(node.body) == 1
        and isinstance(node.body[0], ast.Expr)
        and isinstance(node.body[0].value, ast.Constant)
        and node.body[0].value.value is ...
    )


def _is_inner(tree: ast.AST, wanted: ast.AST) -> bool:
    return any(
        wanted is not node and wanted in ast.walk(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    )


#: AST nodes of the package, as tools/measure.py counts them. The same features may only take fewer;
#: an issue that adds a capability raises this by a figure that it states. 53,600 until 2026-11-30;
#: then 700 more, of which about 450 are former names of driver folders, `description` with notes
#: and the version gate of requests, and the rest names for parts of packed expressions; then 200
#: for the one line about a wrong `[database] connection`, and 500 for policy files and outages.
MOST_NODES = 54_900
#: AST nodes of one function, and of a line of code on average.
MOST_NODES_OF_A_FUNCTION = 200
MOST_NODES_OF_A_LINE = 4.5


@pytest.fixture(scope='module')
def figures() -> measure.Figures:
    return measure.measure(PACKAGE)


def test_package_does_not_grow(figures: measure.Figures) -> None:
    assert figures.nodes <= MOST_NODES


def test_lines_are_not_packed(figures: measure.Figures) -> None:
    assert figures.nodes_per_line <= MOST_NODES_OF_A_LINE


def test_functions_are_small(figures: measure.Figures) -> None:
    large = [
        f'{function.place} {function.name}: {function.nodes}'
        for function in figures.functions
        if function.nodes > MOST_NODES_OF_A_FUNCTION
    ]

    assert large == []


def test_floors_hold() -> None:
    done = subprocess.run(
        [pathlib.Path(sys.executable).parent / 'lint-imports', '--config', '.importlinter'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout


def test_every_option_says_what_it_does() -> None:
    for group, opts in config.GROUPS.items():
        for opt in opts:
            assert opt.help and opt.help.endswith('.') and len(opt.help) > 30, (
                f'[{group}] {opt.name}'
            )


def test_every_route_has_a_rule_and_every_rule_a_route() -> None:
    named = {route.rule for route in routes.ROUTES if route.rule}
    known = {rule.name for rule in policies.OPERATIONS}

    assert named <= known
    assert set(policies.ALL_PROJECTS) <= named and len(policies.ALL_PROJECTS_RULES) == len(
        policies.ALL_PROJECTS
    )
    assert known - named == {
        'clustertemplate:publish',
        'cluster:update_health_status',
        'cluster:force_delete',
    }


def test_every_since_is_a_version() -> None:
    for resource in (
        found for found in vars(resources).values() if isinstance(found, schema.Resource)
    ):
        for field in resource.fields:
            assert field.since in versions.VERSIONS
            assert field.doc.endswith('.'), field.name
    assert all(route.since in versions.VERSIONS for route in routes.ROUTES)


@pytest.mark.parametrize('code', [code for code, _ in diagnose.SIGNS])
def test_every_code_is_explained(code: str) -> None:
    assert code in errors.CODES


@pytest.mark.parametrize(
    ('tool', 'source', 'sample'),
    [
        ('oslo-config-generator', 'config-generator.conf', 'magnum-lite.conf.sample'),
        ('oslopolicy-sample-generator', 'policy-generator.conf', 'policy.yaml.sample'),
    ],
)
def test_samples_are_fresh(tool: str, source: str, sample: str, tmp_path: pathlib.Path) -> None:
    """If this fails: tox -e genconfig,genpolicy."""
    made = tmp_path / sample
    done = subprocess.run(
        [
            pathlib.Path(sys.executable).parent / tool,
            '--config-file',
            f'etc/{source}',
            '--output-file',
            made,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert made.read_text() == (ROOT / 'etc' / sample).read_text()


def test_templates_are_named_by_their_folders() -> None:
    assert all(name == driver.name for name, driver in drivers.folders.read_folders(()).items())
