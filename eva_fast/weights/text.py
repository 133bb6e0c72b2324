"""Text where weights are expected: what it probably is, and how to get the weights."""

from __future__ import annotations

import string

_PRINTABLE = frozenset(string.printable.encode())


def text_hint(start: bytes) -> str | None:
    """What a file is that begins with the bytes `start`, and what to do; None where they are no text, as
    those of every weight file are not, or too few to tell."""
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if len(start) < 16 or not _PRINTABLE.issuperset(start):
        return None
    head = start[:64].lower()
    if head.startswith(b"version https://git-lfs"):
        return (
            "it is a Git LFS pointer, which stands for a file that was not downloaded. Run `git lfs "
            "pull` in its repository, or download the file itself"
        )
    if head.startswith((b"/annex/objects", b"../.git/annex", b".git/annex")):
        return "it is a git-annex pointer: run `git annex get` on it"
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            "it is a web page, such as a login, an error or a page about the file. Download the file "
            "behind its download link (Hugging Face: /resolve/ in the address, not /blob/)"
        )
    if head.startswith((b"{", b"[")):
        return (
            "it is JSON, such as a configuration or an error message of a server. Give the weight file, "
            "or the folder that both lie in"
        )
    line = start.splitlines()[0][:60].decode("ascii")
    return f"it is text and begins with {line!r}"
