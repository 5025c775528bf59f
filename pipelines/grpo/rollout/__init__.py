"""From prompts to responses: samplers, their engines, their pool."""
