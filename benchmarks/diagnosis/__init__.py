"""How well the doctor tells what is wrong, beside what users have today.

`python -m benchmarks.diagnosis` builds broken and healthy checkpoints from real models with torch,
safetensors, Lightning, transformers and DCP, never with holdtrue's own writer, asks the doctor
about each, executes the fixes that it prints, and gives the same cases to other tools.
"""
