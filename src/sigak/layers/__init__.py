"""Blocks that several families share, `normalize` and `dropout`; `memory` speeds them all up."""

__all__: list[str] = []
