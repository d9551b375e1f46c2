"""Prompts to vectors, on the device, before anything leaves it: pooled for a profile, in full for inference."""

from fedgen.encode.encoders import ENCODERS, Encoder, Folder, Ngrams, Own, Silent, states
from fedgen.encode.profile import Profile, noise
from fedgen.encode.sealed import seal, unseal

__all__ = ["ENCODERS", "Encoder", "Folder", "Ngrams", "Own", "Profile", "Silent", "noise", "seal", "states", "unseal"]
