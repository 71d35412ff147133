"""What all file dialects share: the header, module names, metadata, and finding a layer's tensors."""
