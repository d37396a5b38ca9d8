"""Blocks that several families share (`normalize`, `fused`), and `memory`, which speeds them up."""

__all__: list[str] = []
