"""Data and style of all figures, their drawing in parallel, and their files."""
