"""What real scans need before they are reconstructed: one module for each artefact, and the chain that applies them."""
