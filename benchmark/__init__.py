"""The harness: registry, plan, execution, training, scoring, storage and the command line."""
