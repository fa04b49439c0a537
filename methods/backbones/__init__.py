"""Networks of timm behind one adapter, with their weights and normalisation."""
