"""From a folder of photos to training batches: reading, framing, captions, the batch plan, and what is kept between steps."""
