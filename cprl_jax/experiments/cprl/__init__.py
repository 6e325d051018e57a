"""CPRL's experiment: methods trained, attacked and reported side by side."""
