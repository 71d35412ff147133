"""The library: adapters, concepts, base models, plans and pictures, known by their content."""
