"""What the demo has made outside its own folder, so that `--down` removes that and nothing else.

An entry is written before the thing is made: what a killed demo had begun is removed, too, and
removing what is not there does no harm."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Made:
    """Entries in the order in which they were made; each a kind and a name."""

    file: Path

    def entries(self) -> list[tuple[str, str]]:
        """All that is recorded."""
        if not self.file.exists():
            return []
        return [(kind, name) for kind, name in json.loads(self.file.read_text())]

    def names(self, kind: str) -> list[str]:
        """The names of the entries of a kind."""
        return [name for found, name in self.entries() if found == kind]

    def add(self, kind: str, name: str) -> None:
        """Record that something is about to be made; once."""
        if (kind, name) not in self.entries():
            self._write([*self.entries(), (kind, name)])

    def remove(self, kind: str, name: str) -> None:
        """Record that it is gone."""
        self._write([entry for entry in self.entries() if entry != (kind, name)])

    def _write(self, entries: list[tuple[str, str]]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        new = self.file.with_suffix('.new')
        new.write_text(json.dumps(entries, indent=1))
        new.replace(self.file)
