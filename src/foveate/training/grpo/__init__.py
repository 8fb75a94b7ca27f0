"""Training with GRPO: rewards, advantages, rollouts in two turns, and the trainer on top of TRL."""
