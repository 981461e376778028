"""Settings: one strict tree, every field documented; a preset or a YAML file fills it."""

from carevl.settings.base import SettingsError
from carevl.settings.loader import load_settings
from carevl.settings.tree import Settings

__all__ = ["Settings", "SettingsError", "load_settings"]
