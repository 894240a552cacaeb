"""Builders of the generated shapes, one file per family; ``partwhole.shape3d.generator`` is the door."""
