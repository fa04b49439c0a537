"""Parts of datasets: lists, folds, identities of groups, leaks."""
