"""A simulated pool and Slurm, in which a controller's decisions can be tried.

`workload` says which jobs come when, `cluster` where Slurm has room, `pool` how the negotiator fills the pilots, and
`world` lets them meet, event by event. `ours` drives htcebridge's own planner; anything else with a `decide` can
take its place, and meets the same jobs, the same paying jobs and the same pilots.
"""
