"""What all training jobs share: engines, sampler, checkpoints, workers on Ray Train."""
