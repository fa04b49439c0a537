"""Ground-truth masks: reading them, their rules, and doubts about them."""
