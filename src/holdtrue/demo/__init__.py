"""The main job on real data: train, be killed while saving, resume, and compare."""
