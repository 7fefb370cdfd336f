"""The rating app: blind comparisons of models by people, whose votes become preference pairs."""
