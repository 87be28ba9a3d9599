"""The command line of what takes ``key=value`` words, for people who expect options there."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from longtail.errors import ConfigError


class OfSettings(TyperCommand):
    """A command that says of an option that there is not, which ``key=value`` word it might have been."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As every command does; an unknown ``--option`` that names no option nearly is a ConfigError."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # its class is of a private copy of Click
            option = str(getattr(error, "option_name", ""))
            unknown = type(error).__name__ == "NoSuchOption" and not getattr(error, "possibilities", None)
            if not unknown or not option.startswith("--"):
                raise
            from longtail.config import known_keys
            from longtail.other_words import meant_key

            key = meant_key(option.removeprefix("--").replace("-", "_"), known_keys())
            example = f"{key}=..." if key else "optim.epochs=20"
            raise ConfigError(
                f"There is no option {option}.", hint=f"Settings are words without dashes, e.g. {example}"
            ) from None
