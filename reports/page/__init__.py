"""The HTML page and its gallery."""
