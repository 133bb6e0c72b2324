"""Images as files in a folder, nested or flat; the folder a file lies in is its label."""

import os
from pathlib import Path

from eva_fast.data.decode.formats import image_suffixes
from eva_fast.data.index import Index, cached_index
from eva_fast.data.sources.base import Item, Source
from eva_fast.data.sources.left_out import LeftOut, printable
from eva_fast.data.sources.walk import Walk
from eva_fast.errors import UsageError
from eva_fast.files import read_file


class FileSource(Source):
    """Files by an index; the group of an entry is its folder, relative to `root`."""

    knows_labels = True

    def __init__(self, root: Path, index: Index, left_out: LeftOut, names: str):
        self.root = root
        self.index = index
        self.names = [names]
        self.met = left_out
        self.left_out = self.met.counts

    def __len__(self) -> int:
        return len(self.index)

    def item(self, number: int) -> Item:
        """The bytes of file `number`, and its folder as label; raises OSError where it cannot be
        read. A file directly in the source's own folder has no label."""
        group, name = self.index.entry(number)
        folder = self.index.groups[group]
        data = read_file(os.path.join(self.root, folder, name))
        return Item(image=data, label=os.path.basename(folder) or None)

    def name(self, number: int) -> str:
        group, name = self.index.entry(number)
        return os.path.join(self.root, self.index.groups[group], name)

    def label(self, number: int) -> str | None:
        folder = self.index.groups[self.index.entry(number)[0]]
        return os.path.basename(folder) or None


def walk_folder(folder: Path) -> FileSource:
    """All images below `folder`, in the order of their paths, folder by folder; perhaps none."""
    root = folder.resolve()
    walk = Walk(str(root))
    try:
        index = cached_index(["folder", str(root)], walk.unchanged, walk.entries, str(folder))
    except PermissionError as error:
        raise UsageError(f"{folder} cannot be read: {error.strerror}") from None
    return FileSource(root, index, walk.left_out, walk.names)


def require_images(source: FileSource) -> FileSource:
    """`source`, after a word on what lies beside its images; UsageError where it holds none."""
    if not len(source):
        raise UsageError(
            f"no image found in {source.root}: it and its subfolders hold no file that ends in one of "
            + ", ".join(image_suffixes())
            + (printable(f"; there are {source.met}") if source.left_out else "")
        )
    source.met.tell(source.root)
    return source
