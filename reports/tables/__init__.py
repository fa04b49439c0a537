"""From rows to tables, in every format."""
