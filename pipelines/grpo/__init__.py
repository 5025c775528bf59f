"""Reinforcement learning of mask words with a textual reward (paper, section 2.3) on Ray."""
