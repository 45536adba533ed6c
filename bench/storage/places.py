"""Where records are: a folder, or an address whose files a folder here mirrors.

Everything else reads and writes the folder. A mirror is brought up to date before, and what is
new in it is published after: sidecar and picture first, the record last, since a record exists
when its JSON does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fairbench.core.documents import from_json
from fairbench.core.errors import InputError
from fairbench.storage.cache import cache_folder
from fairbench.storage.files import atomic_write
from fairbench.storage.objects import Folder, Objects, Remote, is_address, local_path
from fairbench.storage.records import read_record, sidecar_path

__all__ = ["MIRRORS", "Place", "place_of"]

MIRRORS = "mirrors"
"""Kind of cached files that mirrors are."""

RECORD, SIDECAR, PICTURE = ".json", ".images.npz", ".png"

TRIES = 3


@dataclass(frozen=True)
class Place:
    """Where records are.

    Attributes:
        folder: The folder that is read and written.
        objects: What lies at the place itself.
        mirrored: Whether the folder is a mirror of it, not the place itself.
    """

    folder: Path
    objects: Objects
    mirrored: bool

    @property
    def address(self) -> str:
        """As the user names it."""
        return self.objects.address

    def update(self, *, sidecars: bool = True, pictures: bool = False) -> None:
        """Bring the mirror up to date; nothing for a folder.

        What is gone from the store goes here too, unless it was never published.

        Args:
            sidecars: Whether what is known of each image is wanted.
            pictures: Whether the pictures beside the records are wanted too.
        """
        if not self.mirrored:
            return
        wanted = {RECORD: True, SIDECAR: sidecars, PICTURE: pictures}
        kinds = tuple(ending for ending, asked in wanted.items() if asked)
        there = {
            name: entry
            for name, entry in self.objects.list().items()
            if name.endswith(kinds) and name.count("/") == 2 and not name.startswith(".")
        }
        tags = self._tags()
        changed = [name for name, entry in there.items() if tags.get(name) != entry.tag]
        # Records after their sidecars, as everywhere.
        changed.sort(key=lambda name: (name.endswith(RECORD), name))
        for start in range(0, len(changed), 256):
            some = changed[start : start + 256]
            for name, content in self.objects.read(some).items():
                self._put(name, content, there[name].tag)
        for name in tags.keys() - there.keys():
            if name.endswith(kinds):
                self._drop(name)
        self.folder.mkdir(parents=True, exist_ok=True)

    def fetch(self, record: str) -> None:
        """Bring one record of the mirror up to date, with what lies beside it.

        Args:
            record: ``<dataset>/<method>/<key>.json``.
        """
        if not self.mirrored:
            return
        stem = record.removesuffix(RECORD)
        names = [record, stem + SIDECAR]
        got = self.objects.read(names)
        for name in reversed(names):  # the record last
            if name in got:
                self._put(name, got[name], "fetched")
            elif self._tag_of(name).is_file():
                self._drop(name)

    def publish(self, path: Path) -> None:
        """Make a record of the mirror one of the store; nothing for a folder.

        A complete record that is there already stays, unless what lies there isn't its sidecar.

        Args:
            path: Where it lies in the mirror.

        Raises:
            InputError: If the store can't be written to.
        """
        if not self.mirrored or not path.is_file():
            return
        record = read_record(path)
        name = path.relative_to(self.folder).as_posix()
        content = path.read_bytes()
        if record.status != "complete":
            if not self._complete(name):
                self._write(name, content)
            return
        if self.objects.entry(name) is not None and self._whole(name):
            self.fetch(name)
            return
        stem = name.removesuffix(RECORD)
        for _ in range(TRIES):
            if path.with_suffix(PICTURE).is_file():
                self.objects.write(stem + PICTURE, path.with_suffix(PICTURE).read_bytes())
            if sidecar_path(path).is_file():
                self._write(stem + SIDECAR, sidecar_path(path).read_bytes())
            if self.objects.create(name, content):
                self._tag(name)
                return
            # A failed one, or another worker was faster. Whoever's sidecar lies there now writes
            # the record, so that the two belong together whatever the order.
            if self._whole(name):
                self.fetch(name)
                return
            self._write(name, content)
            if self._whole(name):
                return
        raise InputError(
            f"{self.address}/{name}: others write this record again and again; let one end first"
        )

    def publish_new(self) -> None:
        """Publish every record of the mirror that the store never had."""
        if self.mirrored:
            for path in sorted(self.folder.glob("*/*/*.json")):
                if not path.name.startswith(".") and not self.published(path):
                    self.publish(path)

    def replace(self, path: Path) -> None:
        """Publish a record in place of what is there: one that was made anew on purpose."""
        if self.mirrored and path.is_file():
            name = path.relative_to(self.folder).as_posix()
            if read_record(path).status == "complete":
                self.objects.remove(name)
            self.publish(path)

    def published(self, path: Path) -> bool:
        """Whether the store has had a record of the mirror."""
        if not self.mirrored:
            return True
        return self._tag_of(path.relative_to(self.folder).as_posix()).is_file()

    def _complete(self, name: str) -> bool:
        text = self.objects.read([name]).get(name)
        return text is not None and _status(text)[0] == "complete"

    def _whole(self, name: str) -> bool:
        """Whether a complete record lies in the store, with the sidecar that it names."""
        beside = name.removesuffix(RECORD) + SIDECAR
        got = self.objects.read([name, beside])
        if name not in got:
            return False
        status, digest = _status(got[name])
        if status != "complete":
            return False
        return digest is None or (
            beside in got and hashlib.sha256(got[beside]).hexdigest() == digest
        )

    def _write(self, name: str, content: bytes) -> None:
        self.objects.write(name, content)
        self._tag(name)

    def _tag(self, name: str) -> None:
        entry = self.objects.entry(name)
        if entry is not None:
            _save(self._tag_of(name), entry.tag.encode())

    def _put(self, name: str, content: bytes, tag: str) -> None:
        _save(self.folder / name, content)
        _save(self._tag_of(name), tag.encode())

    def _drop(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)
        self._tag_of(name).unlink(missing_ok=True)

    def _tag_of(self, name: str) -> Path:
        path = self.folder / name
        return path.with_name(f".{path.name}.tag")

    def _tags(self) -> dict[str, str]:
        """Name of each file that came from the store or went there -> what told it apart."""
        found = {}
        for path in self.folder.glob("*/*/.*.tag"):
            inner = path.with_name(path.name[1:].removesuffix(".tag"))
            if inner.is_file():
                found[inner.relative_to(self.folder).as_posix()] = path.read_text()
        return found


def place_of(where: str | Path) -> Place:
    """Where ``--results`` says that records are.

    Args:
        where: A path, or an address such as ``s3://bucket/results``.

    Raises:
        InputError: If the address can't be used here; says what to type.
    """
    text = str(where)
    if not is_address(text):
        return Place(Path(where), Folder(Path(where)), mirrored=False)
    if urlsplit(text).scheme in ("file", "local"):
        path = local_path(text)
        return Place(path, Folder(path), mirrored=False)
    store = Remote(text)
    digest = hashlib.sha256(store.address.encode()).hexdigest()[:16]
    return Place(cache_folder() / MIRRORS / digest, store, mirrored=True)


def _status(text: bytes) -> tuple[str, str | None]:
    """Status and sidecar of a record, or of what lies in its place."""
    try:
        data = from_json(text)
        return str(data.get("status")), data.get("sidecar")
    except (ValueError, AttributeError):
        return "damaged", None


def _save(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)
