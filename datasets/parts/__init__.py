"""What datasets share: lists, folds, identities of groups, leaks."""
