"""A run's configuration: read from YAML with overrides, checked in one place, written back resolved."""

from fedray.config.loading import config_to_yaml, load_config
from fedray.config.sections import Config

__all__ = ["Config", "config_to_yaml", "load_config"]
