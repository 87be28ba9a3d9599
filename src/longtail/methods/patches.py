"""Boxes on the grid of a vision transformer's patches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from longtail.errors import ConfigError
from longtail.models.blocks import patch_of
from longtail.models.network import Network
from longtail.settings import Settings


class PatchSettings(Settings):
    """The key of ``method.*`` that puts boxes on a grid."""

    patch: Literal["auto"] | Annotated[int, Field(ge=1)] | None = None
    """Edges of boxes are moved to the nearest multiple of so many pixels; auto: those of the backbone's patches."""

    def grid(self, network: Network, size: int) -> int:
        """``patch`` in pixels, 1 where boxes are free, for images of ``size`` pixels. Raises ConfigError."""
        patch = 1 if self.patch is None else patch_of(network.backbone) if self.patch == "auto" else self.patch
        if patch is None:
            raise ConfigError(
                f"method.patch=auto: backbone '{network.backbone_name}' does not cut images into patches.",
                hint="Choose a vision transformer, leave method.patch out, or give a number of pixels.",
            )
        if size % patch:
            raise ConfigError(f"method.patch={self.patch}: patches of {patch} pixels do not fill images of {size}.")
        return patch
