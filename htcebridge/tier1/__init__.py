"""The outer world of HTCondor: collector, schedds, negotiator, and whether a job fits a slot."""
