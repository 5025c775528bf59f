"""Supervised fine-tuning of MLLMs on chats with mask words: jobs/train_mllm.py."""
