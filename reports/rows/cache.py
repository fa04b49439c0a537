"""Files of the folder `cache`: what was worked out before, by name. Anything but what was written counts as nothing."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...benchmark.core.files import write_text


def read_kept(path: Path, code: str) -> dict[str, Any]:
    """What `write_kept` left under the same code; empty where the file is missing, damaged or changed by hand."""
    try:
        content = json.loads(path.read_bytes())
        kept = content["kept"]
        # A sum over all, as entries of the right names and the wrong content would otherwise show up anywhere.
        return kept if isinstance(kept, dict) and content["sum"] == _sum(_text(kept), code) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def write_kept(path: Path, code: str, kept: Mapping[str, Any]) -> None:
    """Writes what may be needed again, JSON values by name; does nothing in a folder closed to us."""
    text = _text(kept)
    with contextlib.suppress(OSError):
        write_text(path, f'{{"sum": "{_sum(text, code)}", "kept": {text}}}')


def _text(kept: Mapping[str, Any]) -> str:
    return json.dumps(kept, separators=(",", ":"))


def _sum(text: str, code: str) -> str:
    return hashlib.sha256(f"{code}\0{text}".encode()).hexdigest()
