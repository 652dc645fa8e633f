"""Two figures that `bench` has not: the first token of a new process, and decode beside a busy one."""
