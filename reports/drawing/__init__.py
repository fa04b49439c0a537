"""Scenes, the style of all figures, and where these are drawn and saved."""
