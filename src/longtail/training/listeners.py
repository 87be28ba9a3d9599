"""Who watches a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from longtail.config import Config
from longtail.data.prepare import Prepared


class Listener(Protocol):
    """Who watches a run. Every call is made by the loop; none may change anything."""

    def started(self, config: Config, data: Prepared, steps: int, first_step: int) -> None: ...
    def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None: ...
    def evaluated(self, row: Mapping[str, Any]) -> None: ...
    def said(self, message: str) -> None: ...
    def finished(self, results: Mapping[str, Any]) -> None: ...


class Both:
    """Two listeners as one: each is told everything, ``first`` before ``second``."""

    def __init__(self, first: Listener, second: Listener) -> None:
        self.listeners = (first, second)

    def started(self, config: Config, data: Prepared, steps: int, first_step: int) -> None:
        for listener in self.listeners:
            listener.started(config, data, steps, first_step)

    def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None:
        for listener in self.listeners:
            listener.stepped(step, logs, images_per_second)

    def evaluated(self, row: Mapping[str, Any]) -> None:
        for listener in self.listeners:
            listener.evaluated(row)

    def said(self, message: str) -> None:
        for listener in self.listeners:
            listener.said(message)

    def finished(self, results: Mapping[str, Any]) -> None:
        for listener in self.listeners:
            listener.finished(results)


class Silent:
    """Watches and says nothing."""

    def started(self, config: Config, data: Prepared, steps: int, first_step: int) -> None: ...
    def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None: ...
    def evaluated(self, row: Mapping[str, Any]) -> None: ...
    def said(self, message: str) -> None: ...
    def finished(self, results: Mapping[str, Any]) -> None: ...
