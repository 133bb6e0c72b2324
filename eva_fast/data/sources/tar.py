"""What a tar shard is and what its members are, however it is read."""

import tarfile

from eva_fast.data.sources.folder import SUFFIXES

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def is_compressed(name: str) -> bool:
    """Whether a shard can only be read from its beginning, by its name."""
    return name.lower().endswith(_COMPRESSED)


def is_shard(name: str) -> bool:
    """Whether a file is a tar shard, by its name."""
    return name.lower().endswith((".tar", *_COMPRESSED))


class StrictInfo(tarfile.TarInfo):
    """Makes tarfile report a damaged header in the middle, which it takes for the archive's end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "StrictInfo":
        try:
            return super().fromtarfile(tar)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error} at byte {tar.offset}") from None


def is_image(member: tarfile.TarInfo) -> bool:
    """Whether a member of a shard is an image, by its name."""
    base = member.name.rpartition("/")[2]
    return member.isreg() and base.lower().endswith(SUFFIXES) and not base.startswith(".")


def member_label(name: str) -> str | None:
    """The folder within the shard that holds a member, or None."""
    return name.rpartition("/")[0].rpartition("/")[2] or None
