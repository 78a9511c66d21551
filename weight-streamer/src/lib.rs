//! Warms new replicas: a model directory from its peers, verified chunk by chunk and resumable.
