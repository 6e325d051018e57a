"""Small files that are either whole or absent."""

import os
from pathlib import Path


def write_file(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file (text as UTF-8) under a temporary name beside it and renames it: no reader sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
