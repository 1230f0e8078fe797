"""Real language models: loaders, rollout engines, and the experiments that put theory beside measurement."""
