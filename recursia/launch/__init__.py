"""How a run gets onto machines: one description of a job, and a target for each engine."""
