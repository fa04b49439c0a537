"""`bench check`: the contract of a method, tested line by line."""
