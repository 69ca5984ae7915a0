#!/usr/bin/env python3
"""How dense a body of Python is to read: the yardstick of tests/test_rules.py.

    tools/measure.py [FOLDER ...]       figures, side by side; default: magnum_lite
    tools/measure.py --functions N ...  and the N functions with the most nodes

Give it the package folders of other projects to compare with. Tests and migrations are left out.
A node is an `ast.expr` or an `ast.stmt`: what an eye has to parse, however the lines are broken. A
line of code is one with a token that is no comment and no docstring.
"""

from __future__ import annotations

import argparse
import ast
import io
import pathlib
import statistics
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field

#: Folders that hold no code to be read as the program.
LEFT_OUT = frozenset(
    ('tests', 'test', 'functional', 'unit', 'versions', '__pycache__', 'templates')
)
#: Longest line that is not counted as long.
LONG = 100
#: First words of names that say what a function does. A name that begins with another word says
#: what it returns, or nothing.
VERBS = frozenset(
    'accept acquire adapt add adopt advance allow announce append apply ask assert assign attach '
    'authenticate authorize await back begin bind bound build cache calculate call cancel can '
    'change check choose claim clean clear close coerce collect compare compile complete compute '
    'conclude configure connect consume convert copy count create cross cut deal decide decode '
    'decrypt defer define delete deliver deny describe destroy detach detect diagnose diff '
    'discard discover dispatch do document drain drop dump emit enable encode encrypt end enforce '
    'ensure enter escape estimate evaluate examine exchange execute exists expand expect expire '
    'explain export expose extend extract fail fetch fill filter find finish fit fix flatten flush '
    'follow forget format forward gather generate get give go grant group guess guard hand handle '
    'has hash have heed hide hold hook identify ignore import include increment init initialize '
    'insert inspect install interpret invalidate invoke is issue iter iterate join keep launch lay '
    'lease leave let limit link list listen load lock log look loop lose make manage map mark '
    'match maybe measure merge migrate missing modify monitor move must name need needs nest '
    'normalize notify nudge observe open order override own page parse patch pause perform pick '
    'poll pop populate post prepare prevent print probe process produce propagate protect prove '
    'provide publish pull purge push put query quote raise reach react read reads rebuild receive '
    'recheck reconcile record recover recreate redirect reduce refresh refuse register reject '
    'release reload remember remind remove rename render renew replace reply report request '
    'require reset resize resolve respond rest restart restore restrict resume retrieve retry '
    'return reverse revoke rewrite rollback rotate round run sample save scan schedule score '
    'search select send serialize serve set setup shape should show shut shutdown sign skip sleep '
    'sort split start stop store strip submit subtract suggest supports suspend sweep sync take '
    'tell terminate test throw to touch trace track transform translate trim trust try turn undo '
    'unlock unset unwrap update upgrade use validate verify visit wait wake walk wants want warn '
    'wants weigh will with wrap write yield'.split()
)


@dataclass
class Function:
    """One function or method: where it stands, and how much of it there is."""

    place: str
    name: str
    nodes: int
    lines: int


@dataclass
class Figures:
    """What was counted in one folder."""

    files: int = 0
    lines: int = 0
    code: int = 0
    docstrings: int = 0
    comments: int = 0
    characters: int = 0
    long_lines: int = 0
    nodes: int = 0
    functions: list[Function] = field(default_factory=list)

    @property
    def nodes_per_line(self) -> float:
        """AST nodes in a line of code, on average."""
        return self.nodes / self.code

    @property
    def names(self) -> list[list[str]]:
        """The words of the names of functions, without those that Python itself calls."""
        names = [f.name for f in self.functions if not f.name.startswith('__')]
        return [words for words in (name.strip('_').split('_') for name in names) if words[0]]

    def rows(self) -> Iterator[tuple[str, str]]:
        """What is printed, a line each."""
        lengths = sorted(f.lines for f in self.functions)
        sizes = sorted(f.nodes for f in self.functions)
        names = self.names
        one_word = sum(len(words) == 1 for words in names) / len(names)
        verb_first = sum(words[0].lower() in VERBS for words in names) / len(names)
        tail = int(len(lengths) * 0.9)
        yield 'files', f'{self.files}'
        yield 'lines', f'{self.lines:,}'
        yield 'lines of code', f'{self.code:,}'
        yield 'lines of docstrings', f'{self.docstrings:,}'
        yield 'lines of comments', f'{self.comments:,} ({self.comments / self.lines:.1%})'
        yield f'lines over {LONG} columns', f'{self.long_lines / self.lines:.1%}'
        yield 'characters in a line of code', f'{self.characters / self.code:.1f}'
        yield 'AST nodes', f'{self.nodes:,}'
        yield 'AST nodes in a line of code', f'{self.nodes_per_line:.2f}'
        yield 'functions', f'{len(self.functions)}'
        yield (
            'lines of a function, median and p90',
            f'{statistics.median(lengths)}, {lengths[tail]}',
        )
        yield 'nodes of a function, p90 and most', f'{sizes[tail]}, {sizes[-1]}'
        yield 'functions over 200 nodes', f'{sum(size > 200 for size in sizes)}'
        yield 'names of one word', f'{one_word:.0%}'
        yield 'names that begin with a verb', f'{verb_first:.0%}'


def list_sources(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of a package that are read as the program."""
    return sorted(
        path
        for path in folder.rglob('*.py')
        if not LEFT_OUT & set(path.relative_to(folder).parts[:-1])
    )


def count_nodes(tree: ast.AST) -> int:
    """How many expressions and statements a tree has."""
    return sum(isinstance(node, ast.expr | ast.stmt) for node in ast.walk(tree))


def measure(folder: pathlib.Path) -> Figures:
    """Count what is in a folder. Raises SyntaxError for a file that is no Python of today."""
    figures = Figures()
    for path in list_sources(folder):
        text = path.read_text(encoding='utf-8')
        tree = ast.parse(text)
        documented = _find_docstring_lines(tree)
        commented, coded = _sort_lines(text)
        coded -= documented
        lines = text.splitlines()
        figures.files += 1
        figures.lines += len(lines)
        figures.docstrings += len(documented)
        figures.comments += len(commented - coded - documented)
        figures.code += len(coded)
        figures.characters += sum(len(lines[number - 1].strip()) for number in coded)
        figures.long_lines += sum(len(line) > LONG for line in lines)
        figures.nodes += count_nodes(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                place = f'{path.relative_to(folder)}:{node.lineno}'
                figures.functions.append(Function(place, node.name, count_nodes(node), length))
    return figures


def _find_docstring_lines(tree: ast.AST) -> set[int]:
    """The numbers of the lines that docstrings take."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            found |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return found


def _sort_lines(text: str) -> tuple[set[int], set[int]]:
    """The numbers of the lines with comments, and of those with any other token."""
    commented: set[int] = set()
    coded: set[int] = set()
    blank = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            commented.add(token.start[0])
        elif token.type not in blank:
            coded |= set(range(token.start[0], token.end[0] + 1))
    return commented, coded


def main() -> None:
    """Print the figures of every folder in a column of its own."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or '').split('\n\n')[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('folders', nargs='*', type=pathlib.Path, help='package folders')
    parser.add_argument(
        '--functions', type=int, default=0, metavar='N', help='print the N largest functions'
    )
    asked = parser.parse_args()
    folders = asked.folders or [pathlib.Path(__file__).parent.parent / 'magnum_lite']
    for folder in folders:
        if not list_sources(folder):
            parser.error(f'there is no Python in {folder}')
    measured = [measure(folder) for folder in folders]
    columns = [dict(figures.rows()) for figures in measured]
    width = max(12, *(len(folder.name) + 2 for folder in folders))
    width = max(width, *(len(value) + 2 for column in columns for value in column.values()))
    print(f'{"":38}' + ''.join(f'{folder.name:>{width}}' for folder in folders))
    for row in columns[0]:
        print(f'{row:38}' + ''.join(f'{column[row]:>{width}}' for column in columns))
    for figures in measured if asked.functions else ():
        print()
        for function in sorted(figures.functions, key=lambda f: -f.nodes)[: asked.functions]:
            print(f'{function.nodes:6}  {function.place}  {function.name}')


if __name__ == '__main__':
    main()
