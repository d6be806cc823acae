"""Parts of an optimizer step: order of packs, memory fallback, NEFTune, checks, optimizer."""
