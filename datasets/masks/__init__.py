"""Ground-truth masks: readers, the rules that decode them, and checks of their values."""
