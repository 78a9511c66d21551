//! What this machine's paths give: bandwidth and latency beside the roof, verified first.
