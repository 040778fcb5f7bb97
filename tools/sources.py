"""What the site is built from, as one number: `make book` leaves it beside the site, and the tests compare it."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Files and folders that a build reads.
READ = ("_config.yml", "book", "src/advdim", "tools", "requirements.txt")
STAMP = Path("_build") / "sources.sha256"


def digest(root: Path = ROOT) -> str:
    """SHA-256 of the names and contents of all files that a build of the site reads."""
    found = hashlib.sha256()
    for name in READ:
        path = root / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(file.parts):
                content = file.read_bytes()
                found.update(f"{file.relative_to(root).as_posix()} {len(content)}\n".encode())
                found.update(content)
    return found.hexdigest()


if __name__ == "__main__":
    (ROOT / STAMP).write_text(digest() + "\n")
