"""The mathematics of policy optimisation: pure functions, without models and without processes.

A step reads like this: ``advantages`` of all groups, ``sequence_weights`` of all responses, then per
micro-batch ``chosen_log_probs``, ``policy_terms``, perhaps ``kl_loss``, and the weighted sum over
tokens.
"""
