"""Digests of the project's own code, so that results made by other code are never taken for finished ones."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


@cache
def code_digest(*packages: str) -> str:
    """Sixteen hex digits of what the modules of ``vpd.<package>`` do; comments, docstrings and layout do not count."""
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)}\n{meaning(path.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()[:16]


def meaning(source: str) -> str:
    """A module's syntax tree as text, without positions and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body:
            node.body = [line for line in body if not _is_text(line)] or [ast.Pass()]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
