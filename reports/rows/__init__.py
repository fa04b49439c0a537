"""From records to the numbers of table rows."""
