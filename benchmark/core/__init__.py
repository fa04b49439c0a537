"""Ground floor: errors, registry, seeds, metrics, protocols, results store. Knows no method, dataset or stage."""
