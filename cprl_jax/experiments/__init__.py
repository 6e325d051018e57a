"""The papers' experiments: a folder each, with what only that paper has."""
