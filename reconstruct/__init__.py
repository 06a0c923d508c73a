"""From projections to volumes and derived objects: geometry, FDK, phantoms, quality, readers, CT series."""
