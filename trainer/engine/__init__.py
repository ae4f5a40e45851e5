"""What takes a job through its life.

submit      a push: checked, packed, recorded, and a supervisor started
supervisor  one process for each job that has not ended; it may die at any step, and the next one goes on
runner      the process that lives as long as the start commands do, whoever supervises; it keeps their log
inside      in the job's namespaces: makes the last mounts, commits RUNNING, becomes the start commands' parent
"""
