"""Disk and network: the only room that opens files."""
