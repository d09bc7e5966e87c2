"""Plugins: found by their entry points, registered with pluggy, and configured by a Pocket, which runs and stores use."""

from pocket_plug.hookspecs import PluginRecord

from .pocket import Pocket, default_pocket, set_default_pocket

__all__ = ["PluginRecord", "Pocket", "default_pocket", "set_default_pocket"]
