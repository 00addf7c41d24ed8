"""Compose configs, check their values and resolve model names."""

from blockwise.config.compose import CONFIG_DIR, CONFIG_NAME, compose_config, explain, options, plain

__all__ = ["CONFIG_DIR", "CONFIG_NAME", "compose_config", "explain", "options", "plain"]
