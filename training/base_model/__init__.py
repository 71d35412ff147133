"""Recipe of the embedded base model: a small SD-structured latent-diffusion model trained from scratch on the toy world.

Stages, each resumable: ``renders`` -> ``autoencoder`` -> ``denoiser`` -> ``export``. ``studio base-model --help`` runs them.
"""
