"""Pure arithmetic on boxes, points and pictures. It knows no task, no network and no file."""

__all__: list[str] = []
