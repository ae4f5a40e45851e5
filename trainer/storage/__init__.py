"""What a job reads and writes beside its weights: scratch, training cache, checkpoints, workspace, overlays.

scratch         a disk of the job's own with a hard cap; gone with the job
training_cache  directories of a project and of a team; kept until the project is deleted
checkpoint_*    what appears in BT_CHECKPOINT_DIR, brought to object storage while the job runs
workspace       the files a job starts with, packed once at push
overlay         a writable view of a mounted source, changes in the job's scratch

Errors: trainer.storage.errors, and trainer.errors.ConfigError where what was asked for is wrong.
"""
