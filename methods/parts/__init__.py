"""What methods are made of: heads, decoders, losses, pseudo-labels."""
