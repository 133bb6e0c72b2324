"""Makes the repository's own Markdown readable as a site: README.md is its first page, and links that
leave docs/ lead to copies of those files."""

import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {"index.md": ROOT / "README.md", "contributing.md": ROOT / "CONTRIBUTING.md"}
FOLDERS = ("bench/results", "examples")
INSIDE = "repository"  # where the copies lie in the site
LINK = re.compile(r"(\]\()([^)#:\s]+)")


def on_files(files: Files, config) -> Files:
    for page, path in PAGES.items():
        files.append(File.generated(config, page, content=path.read_text()))
    for folder in FOLDERS:
        for path in sorted(p for p in (ROOT / folder).rglob("*") if p.is_file()):
            name = f"{INSIDE}/{path.relative_to(ROOT).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for name in ("NOTICE", "LICENSE"):
        files.append(File.generated(config, f"{INSIDE}/{name}", abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page, **kwargs) -> str:
    here = Path(page.file.src_uri).parent
    written = PAGES.get(page.file.src_uri, ROOT / "docs" / page.file.src_uri).parent
    up = "../" * len(here.parts)

    def moved(link: re.Match[str]) -> str:
        target = (written / link[2]).resolve()
        if not target.is_relative_to(ROOT):
            return link[0]
        name = target.relative_to(ROOT).as_posix()
        known = {path: page for page, path in PAGES.items()}
        if target in known:
            return f"{link[1]}{up}{known[target]}"
        if name.startswith("docs/"):
            return f"{link[1]}{up}{name.removeprefix('docs/')}"
        return f"{link[1]}{up}{INSIDE}/{name}"

    return LINK.sub(moved, markdown)
