"""Energy bins to maps of materials, as Parametric Maps and CT images."""
