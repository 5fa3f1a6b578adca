"""How a state dict of a file is made to fit a model: names, shapes, layouts as data. No torch."""
