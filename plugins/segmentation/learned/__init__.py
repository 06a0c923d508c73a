"""The learned segmenter: a network of the CE-Net family that the archive's own annotations train. torch lives here."""
